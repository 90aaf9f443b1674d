"""`make bench-precision`: what a precision costs in F1 on trained weights: each release's own engines, stage by stage,
over the test split of a data set.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmt_engine.engine import Precision, Runner, open_engine
from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.parity import wired
from cmt_perf.conditions import conditions, to_text
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import no_progress
from cmt_pipeline.stages import COMPILED_STAGES, READY
from cmt_pipeline.tensors import Array, Arrays
from cmt_release.release import Release, newest_release
from cmt_training.batches import Reader, raw_sources
from cmt_training.data import open_data_set
from cmt_training.examples import DataError
from cmt_training.metrics import metrics_of
from cmt_training.prepare import Prepared, prepare

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
MEASURES = ("weighted_f1", "cross_entropy", "ece")
RESULT = Path("perf/results/precision.json")


def answers(release: Release, reader: Reader, items: Sequence[int]) -> Array:
    """Probabilities [items, labels] by the release's engines, of items that have every modality."""
    engines = {stage.name: open_engine(release.stage_folder(stage.name)) for stage in COMPILED_STAGES}
    return np.concatenate([_answer(engines, reader, item) for item in items])


def _answer(engines: dict[str, Runner], reader: Reader, item: int) -> Array:
    tensors: Arrays = {name: tensor.numpy() for name, tensor in reader.batch([item]).inputs.items()}
    encoded = {m: engines[f"encode_{m}"].run({spec.name: tensors[spec.name] for spec in READY[m]}) for m in MODALITIES}
    return engines["fuse"].run(wired(encoded))["probabilities"].astype(np.float64)


def measured(releases: Sequence[Release], data: Prepared) -> dict[str, Any]:
    """A row for each release: F1, cross-entropy in nats, calibration error, and how often its label is the first's.

    Raises DataError when the test split has no item with all three modalities.
    """
    reader = Reader(data, raw_sources(data))
    items = [index for index in data.of("test") if all(data.items[index].has(m) for m in MODALITIES)]
    if not items:
        raise DataError(
            f"no item of {data.name!r}'s test split has all of {', '.join(MODALITIES)}; expected at least one"
        )
    labels, rows, first = reader.labels(items), [], None
    for release in releases:
        precision = release.manifest.info.precision
        print(f"{precision}: release {release.number}, {len(items)} items", file=sys.stderr, flush=True)
        found = answers(release, reader, items)
        first = found if first is None else first
        metrics = metrics_of(found, labels)
        agreed = float((found.argmax(axis=1) == first.argmax(axis=1)).mean())
        rows.append(
            {"precision": precision} | {k: round(v, 4) for k, v in metrics.items()} | {"as_fp32": round(agreed, 4)}
        )
    return {"rows": rows, "conditions": conditions(releases[-1], data=data.name, split="test")}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| precision | weighted F1 | cross-entropy | ECE | the same label as fp32 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [f"{row[measure]:.3f}" for measure in MEASURES]
        lines.append(f"| {row['precision']} | {' | '.join(cells)} | {row['as_fp32']:.1%} |")
    return "\n".join(lines)


def main(state: Path, folder: Path, out: Path = RESULT) -> None:
    """Measures a state folder's newest releases on a data set's folder and writes `out`."""
    releases = [newest_release(state / "releases", precision) for precision in PRECISIONS]
    data, info = open_data_set(folder), releases[0].manifest.info
    like = checkpoint_from_preset(info.preset, info.label_set)
    with tempfile.TemporaryDirectory() as cache:
        prepared = prepare(data, like.config.preprocess, like.tokenizer, Path(cache), no_progress)
        result = measured(releases, prepared)
    out.write_text(to_text(result))
    print(table(result["rows"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(Path, sys.argv[3:]))
