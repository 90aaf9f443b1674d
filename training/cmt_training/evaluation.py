"""What an evaluation found; reports, figures and a model card are made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cmt_training.examples import Split
from cmt_training.metrics import Metrics


@dataclass(frozen=True)
class Evaluation:
    """What `cmt evaluate` measured on one split.

    uncalibrated, calibrated: before and after division of the logits by `temperature`; everything else is calibrated.
    confusion: row = truth, column = prediction; reliability: (share, confidence, accuracy) a bin, before and after;
    subsets: by names joined with `+`, over the items that have at least one of them; curves: (rate, metrics) by name;
    notes: what the data set says of itself.
    """

    model: str
    preset: str
    data: str
    label_set: str
    split: Split
    temperature: float
    uncalibrated: Metrics
    calibrated: Metrics
    labels: tuple[str, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: Mapping[str, Sequence[tuple[float, float, float]]]
    subsets: Mapping[str, Metrics]
    curves: Mapping[str, Sequence[tuple[float, Metrics]]]
    skipped: Mapping[str, int]
    conditions: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def calibrated_by(self) -> str:
        return f"temperature {self.temperature:.3f}" if "before" in self.stages else "by the fusion's parts"

    @property
    def stages(self) -> dict[str, Metrics]:
        """Figures before and after calibration. A fusion that is calibrated by its parts has them in its weights, and
        no before."""
        before = {"before": self.uncalibrated} if self.temperature != 1 else {}
        return before | {"after": self.calibrated}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def summary(self) -> dict[str, Any]:
        """The calibrated figures, those of each label, and their conditions, for a page that quotes them."""
        per_label = zip(self.labels, self.f1, self.support, strict=True)
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            **({"notes": self.notes} if self.notes else {}),
            **self.calibrated,
            "labels": {label: {"f1": f1, "count": count} for label, f1, count in per_label},
            "conditions": dict(self.conditions),
        }
