"""How much of fp16's range a model's tensors take, layer by layer, and what a typed graph keeps in fp32 for it.

`python -m cmt_perf.activation_ranges base=CHECKPOINT ... [--media FOLDER] [--out FILE]` measures checkpoints, each
under a name, in fp32 on the CPU and writes FILE.json and FILE.png (export/results/activation-ranges). The samples are
generated, as those of an export, or the files of a folder.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt_engine.activation_ranges import (
    FP16_LARGEST,
    HEADROOM,
    MOST_ROUNDED,
    ActivationRange,
    activation_ranges,
    beyond_fp16,
)
from cmt_engine.typed_onnx import narrow_tensors
from cmt_perf.conditions import conditions, to_text
from cmt_pipeline.buckets import AUDIO_SECONDS
from cmt_pipeline.stages import COMPILED_STAGES

if TYPE_CHECKING:
    from cmt_export.checkpoint import Checkpoint
    from cmt_export.samples import Batch

RESULTS = Path(__file__).parents[2] / "export" / "results" / "activation-ranges.json"
MOST_FILES = 12  # of each modality

Row = dict[str, Any]


@dataclass
class Report:
    """models: name -> what its weights are; layers: a row for each, of the tensors that a typed graph holds in fp16;
    beyond_fp16: every tensor that fp16 doesn't hold, and whether the typed graph has to be mended for it."""

    models: dict[str, Row] = field(default_factory=dict)
    layers: list[Row] = field(default_factory=list)
    beyond_fp16: list[Row] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--media", type=Path, help="folder of pictures, sounds and texts; generated ones without it")
    parser.add_argument("--inputs", default="", help="what the media are, in words, for the conditions")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    report = Report()
    for item in given.checkpoints:
        name, _, folder = item.partition("=")
        measure(name, Path(folder), given.media, report)
    inputs = given.inputs or ("generated, as an export's" if given.media is None else "files of a folder")
    found = conditions(command="python -m cmt_perf.activation_ranges", inputs=inputs)
    limits = {"largest": FP16_LARGEST, "headroom": HEADROOM, "most_rounded": MOST_ROUNDED}
    given.out.write_text(to_text({"conditions": found, "fp16": limits, **vars(report)}))
    draw(report.layers, given.out.with_suffix(".png"))
    print(table(report.layers, report.beyond_fp16))


def measure(name: str, checkpoint: Path, media: Path | None, report: Report) -> None:
    """Adds a model to the report."""
    from cmt_export.checkpoint import load_checkpoint
    from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
    from cmt_export.parity import stage_inputs

    made = load_checkpoint(checkpoint)
    samples = samples_of(made, media)
    report.models[name] = about(made) | {"samples": len(samples)}
    for stage in COMPILED_STAGES:
        with tempfile.TemporaryDirectory() as folder:
            graph = onnx_from_checkpoint(made.model, stage, Path(folder))
            ranges = activation_ranges(graph, stage_inputs(made.model, stage, samples))
            held = narrow_tensors(graph, "fp16")
        place = {"model": name, "stage": stage.name}
        report.layers += layer_rows(place, ranges, held)
        report.beyond_fp16 += beyond_rows(place, ranges, held)


def samples_of(made: Checkpoint, media: Path | None) -> list[Batch]:
    from cmt_export.samples import batches, batches_from_folder
    from cmt_pipeline.preprocess import make_preprocessors

    preprocessors = make_preprocessors(made.config.preprocess, made.tokenizer)
    if media is None:
        return batches(preprocessors, (1,) * len(AUDIO_SECONDS))
    return batches_from_folder(preprocessors, media, MOST_FILES)


def about(made: Checkpoint) -> Row:
    """What its weights are."""
    encoders = made.config.encoders
    return {
        "trained": made.config.trained,
        "families": {m: encoder.config["model_type"] for m, encoder in encoders.items()},
        "published_encoders": [m for m, encoder in encoders.items() if encoder.weights_from is not None],
    }


def layer_rows(place: Row, ranges: Iterable[ActivationRange], held: Collection[str]) -> list[Row]:
    """A row a layer: the largest tensor that the typed graph holds in fp16, and the worst rounded."""
    layers: dict[str, list[ActivationRange]] = {}
    for found in ranges:
        if found.name in held:
            layers.setdefault(found.layer, []).append(found)
    rows = []
    for layer, tensors in layers.items():
        largest = max(tensors, key=lambda found: found.largest)
        rounded = max(tensors, key=lambda found: found.rounded)
        rows.append(
            {**place, "layer": layer, "tensors": len(tensors)}
            | {"largest": _short(largest.largest), "op": largest.op, "tensor": largest.name}
            | {"rounded": _short(rounded.rounded), "rounded_tensor": rounded.name}
        )
    return rows


def beyond_rows(place: Row, ranges: Iterable[ActivationRange], held: Collection[str]) -> list[Row]:
    return [
        {**place, "layer": found.layer, "tensor": found.name, "op": found.op, "largest": _short(found.largest)}
        | {"mended": found.name in held}
        for found in ranges
        if beyond_fp16([found])
    ]


def table(layers: Iterable[Row], beyond: Iterable[Row]) -> str:
    """In Markdown, a row a stage of a model: where the largest tensor is that is held in fp16, and how many aren't."""
    heads = "model", "stage", "largest in fp16", "of its end", "made by", "rounded at most", "beyond fp16", "mended"
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    stages: dict[tuple[str, str], list[Row]] = {}
    for row in layers:
        stages.setdefault((row["model"], row["stage"]), []).append(row)
    for (model, stage), rows in stages.items():
        most = max(rows, key=lambda row: float(row["largest"]))
        rounded = max(float(row["rounded"]) for row in rows)
        out = [row for row in beyond if (row["model"], row["stage"]) == (model, stage)]
        cells = (
            f"`{model}`",
            f"`{stage}`",
            f"{most['largest']:,.5g}",
            f"{most['largest'] / FP16_LARGEST:.1%}",
            f"{most['op']} in {most['layer'] or 'no layer'}",
            f"{rounded:.2%}",
            str(len(out)),
            str(sum(row["mended"] for row in out)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(layers: Sequence[Row], path: Path) -> None:
    """A panel a stage: for each model the largest magnitude of each layer, and where fp16 ends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(COMPILED_STAGES), figsize=(3.6 * len(COMPILED_STAGES), 3.8), sharey=True)
    for panel, stage in zip(panels, COMPILED_STAGES, strict=True):
        for name in dict.fromkeys(row["model"] for row in layers):
            sizes = [row["largest"] for row in layers if (row["model"], row["stage"]) == (name, stage.name)]
            depth = [index / max(len(sizes) - 1, 1) for index in range(len(sizes))]
            panel.plot(depth, sizes, marker=".", label=name)
        panel.axhline(FP16_LARGEST, color="tab:red", linewidth=1)
        panel.axhline(FP16_LARGEST / HEADROOM, color="tab:red", linewidth=1, linestyle=":")
        panel.set(title=stage.name, xlabel="first layer to last", yscale="log", xticks=[])
    panels[0].set_ylabel("largest magnitude held in fp16")
    panels[0].legend(fontsize="small")
    figure.text(0.995, 0.01, "red: where fp16 ends, 65,504; dotted: what is kept in fp32", ha="right", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _short(figure: float) -> float:
    """Of four digits. An overflow's is 1: all of the tensor is lost, and JSON knows no infinity."""
    return float(f"{figure:.4g}") if math.isfinite(figure) else 1.0


if __name__ == "__main__":
    main()
