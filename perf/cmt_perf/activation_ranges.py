"""How much of fp16's range a model's tensors take, layer by layer, and what a typed graph keeps in fp32 for it.

`python -m cmt_perf.activation_ranges base=CHECKPOINT ... [--media FOLDER] [--out FILE]` measures checkpoints, each
under a name, in fp32 on the CPU and writes FILE.json and FILE.png (export/results/activation-ranges). The samples are
generated, as those of an export, or the files of a folder.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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

RESULTS = Path(__file__).parents[2] / "export" / "results" / "activation-ranges.json"
MOST_FILES = 12


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--media", type=Path, help="folder of pictures, sounds and texts; generated ones without it")
    parser.add_argument("--inputs", default="", help="what the media are, in words, for the conditions")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    models = {}
    for item in given.checkpoints:
        name, _, folder = item.partition("=")
        models[name] = measured(Path(folder), given.media)
        print(f"{name}\n{table(models[name]['layers'])}", flush=True)
    inputs = given.inputs or ("generated, as an export's" if given.media is None else given.media.name)
    found = conditions(command="python -m cmt_perf.activation_ranges", inputs=inputs)
    limits = {"largest": FP16_LARGEST, "headroom": HEADROOM, "most_rounded": MOST_ROUNDED}
    given.out.write_text(to_text({"conditions": found, "fp16": limits, "models": models}))
    draw(models, given.out.with_suffix(".png"))


def measured(checkpoint: Path, media: Path | None) -> dict[str, Any]:
    """What a model's weights are, its layers' rows, and the tensors that fp16 doesn't hold."""
    from cmt_export.checkpoint import load_checkpoint
    from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
    from cmt_export.parity import stage_inputs
    from cmt_export.samples import batches, batches_from_folder
    from cmt_pipeline.preprocess import make_preprocessors

    made = load_checkpoint(checkpoint)
    preprocessors = make_preprocessors(made.config.preprocess, made.tokenizer)
    samples = (
        batches(preprocessors, (1,) * len(AUDIO_SECONDS))
        if media is None
        else batches_from_folder(preprocessors, media, MOST_FILES)
    )
    rows, beyond = [], []
    for stage in COMPILED_STAGES:
        with tempfile.TemporaryDirectory() as folder:
            graph = onnx_from_checkpoint(made.model, stage, Path(folder))
            ranges = activation_ranges(graph, stage_inputs(made.model, stage, samples))
            held = narrow_tensors(graph, "fp16")
        rows += layer_rows(stage.name, ranges, held)
        not_held = beyond_fp16(ranges)
        beyond += [
            {"stage": stage.name, "layer": r.layer, "tensor": r.name, "op": r.op, "largest": float(f"{r.largest:.4g}")}
            | {"mended": r.name in held}
            for r in ranges
            if r.name in not_held
        ]
    config = made.config
    weights = {m: encoder.weights_from is not None for m, encoder in config.encoders.items()}
    return {
        "preset": config.preset,
        "trained": config.trained,
        "published_encoders": [m for m, published in weights.items() if published],
        "families": {m: encoder.config["model_type"] for m, encoder in config.encoders.items()},
        "samples": len(samples),
        "layers": rows,
        "beyond_fp16": beyond,
    }


def layer_rows(stage: str, ranges: Iterable[ActivationRange], held: frozenset[str]) -> list[dict[str, Any]]:
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
            {"stage": stage, "layer": layer, "tensors": len(tensors)}
            | {"largest": float(f"{largest.largest:.4g}"), "largest_op": largest.op, "largest_tensor": largest.name}
            | {"rounded": _json(rounded.rounded), "rounded_tensor": rounded.name}
        )
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    heads = f"{'stage':<14}{'layer':<34}{'largest':>10}  {'of fp16':>8}  {'rounded':>8}  op"
    lines = [
        f"{row['stage']:<14}{row['layer'] or '-':<34}{row['largest']:>10.4g}  {row['largest'] / FP16_LARGEST:>8.2%}  "
        f"{row['rounded']:>9}  {row['largest_op']}"
        for row in rows
    ]
    return "\n".join([heads, *lines])


def draw(models: dict[str, Any], path: Path) -> None:
    """A panel a stage: for each model a line of the largest magnitude over the layers, and fp16's end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(COMPILED_STAGES), figsize=(4 * len(COMPILED_STAGES), 4), sharey=True)
    for panel, stage in zip(panels, COMPILED_STAGES, strict=True):
        for name, model in models.items():
            sizes = [row["largest"] for row in model["layers"] if row["stage"] == stage.name]
            panel.plot([index / max(len(sizes) - 1, 1) for index in range(len(sizes))], sizes, marker=".", label=name)
        panel.axhline(FP16_LARGEST, color="tab:red", linewidth=1)
        panel.axhline(FP16_LARGEST / HEADROOM, color="tab:red", linewidth=1, linestyle=":")
        panel.set(title=stage.name, xlabel="depth, first layer to last", yscale="log")
    panels[0].set_ylabel("largest magnitude of any fp16 tensor")
    panels[0].legend(fontsize="small")
    figure.text(0.995, 0.01, "red: fp16's largest, 65,504; dotted: a quarter of it, the limit", ha="right", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)


def _json(figure: float) -> float | str:
    """JSON knows no infinity."""
    return float(f"{figure:.2g}") if math.isfinite(figure) else "overflows"


if __name__ == "__main__":
    main()
