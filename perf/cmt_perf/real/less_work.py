"""What encoders that do less save, and what it costs: less_work.json of results.

    python -m cmt_perf.real.less_work WORK DATA

Saved: the time of the encoder's engine, all variants of an encoder in turns on one thread. Cost, of real weights on
real media: the weighted F1 of a logistic regression on the mean of what the frozen encoder says, of faces of FER2013
and of EmoDB's voices, each speaker's by a regression that never heard them; and how far the engine is from PyTorch,
which merges or stops as early. "as trained": of the regression that was fitted on the whole encoder.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cmt_engine.engine import ENGINES, Build, Precision, Runner, open_engine
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_export.parity import references, stage_parity
from cmt_export.samples import batches
from cmt_perf.bench.machine import peaks
from cmt_perf.conditions import conditions, to_text
from cmt_perf.gpu.stages import stage_inputs
from cmt_perf.real.tables import sampled, unpacked
from cmt_perf.real.trial import Trial
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import STAGES, Stage, sized
from cmt_pipeline.tensors import Array
from cmt_training.data import open_data_set
from cmt_training.encoded import Encoded
from cmt_training.examples import Split
from cmt_training.frozen import fast_precision, frozen_sources
from cmt_training.markdown import markdown_table
from cmt_training.prepare import Item, Prepared, prepare

RESULT = Path("perf/results/less_work.json")
COMPARED, CALIBRATED = (1, 2, 1), 16  # items
ROUNDS, WARM_UP = 30, 3
FACES: Mapping[Split, int] = {"train": 1000, "validation": 1, "test": 500}
REGULARISATION = 0.01  # scikit-learn's C, of standardised means


@dataclass(frozen=True)
class Case:
    """An encoder, and what of it is asked for in turns, the whole first. preset: "": of real weights."""

    name: str
    modality: Modality
    asked: tuple[str, ...]
    preset: str = ""
    precision: Precision = "int8"


MERGED = ("merged_tokens=0", "merged_tokens=8", "merged_tokens=16")
CASES = (
    Case("DINOv2-small", "image", MERGED),
    Case("DINOv2-small", "image", MERGED, precision="bf16"),
    Case("DINOv2-small", "image", MERGED, precision="fp32"),
    Case("Whisper-tiny.en", "audio", tuple(f"num_hidden_layers={layers}" for layers in (4, 3, 2, 1))),
    Case("ViT-B/16", "image", ("merged_tokens=0", "merged_tokens=8", "merged_tokens=13"), "base"),
    Case("Wav2Vec2-base", "audio", tuple(f"num_hidden_layers={layers}" for layers in (12, 9, 6)), "base"),
)


@dataclass(frozen=True)
class Row:
    """error: relative, of the features, the engine's from PyTorch's; f1: fitted on this encoder; f1_as_trained: on the
    whole one; None without real weights."""

    encoder: str
    precision: Precision
    asked: str
    ms: float
    times_as_fast: float
    error: float
    f1: float | None = None
    f1_as_trained: float | None = None


def rows_of(case: Case, trial: Trial) -> list[Row]:
    preset = case.preset or str(trial.preset())
    made = [
        checkpoint_from_preset(f"{preset},{case.modality}=?{asked}", "meld", random_weights=bool(case.preset))
        for asked in case.asked
    ]
    stage = sized(STAGES[f"encode_{case.modality}"], made[0].model.sizes)
    with TemporaryDirectory() as work:
        folders = [Path(work, asked) for asked in case.asked]
        errors = [
            built(checkpoint, stage, case.precision, folder) for checkpoint, folder in zip(made, folders, strict=True)
        ]
        times = _in_turns(stage, [open_engine(folder / "engine", threads=1) for folder in folders])
    f1 = [(None, None)] * len(made) if case.preset else _f1(case.modality, made, trial)
    return [
        Row(case.name, case.precision, asked, ms, round(times[0] / ms, 2), error, *found)
        for asked, ms, error, found in zip(case.asked, times, errors, f1, strict=True)
    ]


def built(checkpoint: Checkpoint, stage: Stage, precision: Precision, folder: Path) -> float:
    """Builds FOLDER/engine, of OpenVINO; how far it is from PyTorch."""
    (folder / "engine").mkdir(parents=True)
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    graph = onnx_from_checkpoint(checkpoint.model, STAGES[stage.name], folder / "onnx")

    def calibration() -> list[dict[str, Array]]:
        made = batches(preprocessors, (1,) * CALIBRATED, seed=1)
        return [{spec.name: batch.tensors[spec.name] for spec in stage.inputs} for batch in made]

    engine = ENGINES["openvino"]
    engine.build(Build(graph, stage, folder / "engine", precision, calibration))
    expected = references(checkpoint.model, STAGES[stage.name], batches(preprocessors, COMPARED))
    return stage_parity(open_engine(folder / "engine"), engine, stage, precision, expected).error


def _in_turns(stage: Stage, runners: Sequence[Runner]) -> list[float]:
    """Median milliseconds of each, of one item, 4 s of sound."""
    tensors = stage_inputs(stage, 1, "cpu")
    inputs = {spec.name: tensor.numpy() for spec, tensor in zip(stage.inputs, tensors, strict=True)}
    found: list[list[float]] = [[] for _ in runners]
    for number in range(WARM_UP + ROUNDS):
        for runner, times in zip(runners, found, strict=True):
            start = time.perf_counter()
            runner.run(inputs)
            if number >= WARM_UP:
                times.append(1e3 * (time.perf_counter() - start))
    return [round(statistics.median(times), 1) for times in found]


def _f1(modality: Modality, made: Sequence[Checkpoint], trial: Trial) -> list[tuple[float, float]]:
    """Fitted on each encoder, and on the first of them."""
    if modality == "image":
        faces = unpacked(trial.data / "fer2013" / "fer2013.tar.gz", trial.work)
        data = open_data_set(sampled(faces, FACES, trial.work / "tables" / "faces-less.csv"))
    else:
        data = open_data_set(unpacked(trial.data / "emodb" / "emodb.tar", trial.work))
    means: list[Array] = []
    for checkpoint in made:
        ready = prepare(data, checkpoint.config.preprocess, checkpoint.tokenizer, trial.work / "prepared", _told)
        source = frozen_sources(checkpoint.model, [modality], ready, fast_precision(), _told)[modality]
        means.append(_means(ready, source))
    folds = _folds(ready)
    labels = np.array([item.label for item in ready.items])
    return [(cross_validated(folds, labels, own, own), cross_validated(folds, labels, means[0], own)) for own in means]


def _means(ready: Prepared, source: Encoded) -> Array:
    """[items, width]: the mean of an item's tokens."""
    found: Array = np.stack([source.tokens(item).astype(np.float64).mean(axis=0) for item in ready.items])
    return found


def _folds(ready: Prepared) -> list[Array]:
    """Which items are the test's [items]: each speaker's in turn, or the test split."""
    speakers = sorted({item.speaker for item in ready.items})

    def held_out(item: Item, speaker: str) -> bool:
        return item.speaker == speaker if len(speakers) > 1 else item.split == "test"

    return [np.array([held_out(item, speaker) for item in ready.items]) for speaker in speakers]


def regression() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))


def cross_validated(folds: Sequence[Array], labels: Array, learnt: Array, asked: Array) -> float:
    """Weighted F1 of the answers of all folds together. learnt: what the regressions are fitted on; asked: what they
    are asked of."""
    answers = np.empty_like(labels)
    for test in folds:
        answers[test] = regression().fit(learnt[~test], labels[~test]).predict(asked[test])
    tested = np.any(folds, axis=0)
    return round(float(f1_score(labels[tested], answers[tested], average="weighted")), 4)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    head = ["encoder", "", "asked for", "ms", "times as fast", "off PyTorch", "weighted F1", "as trained on the whole"]
    lines = []
    for row in rows:
        f1 = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("f1", "f1_as_trained")]
        cells = [f"{row['ms']:.1f}", f"{row['times_as_fast']:.2f}", f"{row['error']:.1e}", *f1]
        lines.append([row["encoder"], row["precision"], f"`{row['asked']}`", *cells])
    return markdown_table(head, lines)


def _told(what: str, done: float) -> None:
    print(f"\r{done:4.0%} {what:60}", end="", file=sys.stderr, flush=True)


def main(work: Path, data: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    trial = Trial(work, data)
    rows = [asdict(row) for case in CASES for row in rows_of(case, trial)]
    more: dict[str, Any] = {"peaks": asdict(peaks()), "rounds": ROUNDS, "faces": dict(FACES), "threads": 1}
    RESULT.write_text(to_text({"rows": rows, "conditions": conditions(**more)}))
    print(table(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
