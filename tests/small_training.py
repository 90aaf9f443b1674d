"""Trainings of a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

from cmt_training.options import TrainOptions
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


def silent(*_: object) -> None:
    """No progress is told."""


def without_times(run: Path) -> list[dict[str, float]]:
    """The history that a training left, but for how long its epochs took."""
    rows = json.loads((run / "history.json").read_text())["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
