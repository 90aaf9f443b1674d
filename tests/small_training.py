"""Trainings of a few seconds, here and in processes of their own."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared
from tiny_model import TINY

OPTIONS = TrainOptions(
    preset=TINY.name,
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    encoder_learning_rate=3e-3,
    precision="fp32",
    threads=1,
    audio_pretraining_steps=0,
    encoder_epochs=0,
)
ROOT = Path(__file__).parents[1]
CHILD = ROOT / "tests" / "training" / "child.py"
FOLDERS = ("cmt", "training", "client", "server", "export", "ensembles", "tests")


def environment() -> dict[str, str]:
    """In which a new Python finds our packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)}


def command(prepared: Prepared, out: Path, options: TrainOptions, *more: str) -> list[str]:
    """A training in a process of its own."""
    return [sys.executable, str(CHILD), str(prepared.folder), str(out), json.dumps(asdict(options)), *more]


def silent(*_: object) -> None:
    """No progress is told."""


def without_times(run: Path) -> list[dict[str, float]]:
    """The history that a training left, but for how long its epochs took."""
    rows = json.loads((run / "history.json").read_text())["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
