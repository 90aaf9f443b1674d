"""Metrics of probabilities against labels, and the temperature that calibrates them.

F1 as scikit-learn defines it; expected calibration error and temperature scaling after Guo et al. 2017 (arXiv
1706.04599).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from cmt_pipeline.registry import Registry

Floats: TypeAlias = NDArray[Any]

ECE_BINS = 15
LOWEST_P = 1e-12
TEMPERATURES = (0.25, 8.0)


#: `count` of items, and each metric's figure by its name.
Metrics: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Metric:
    """title: as tables head it; of: probabilities [n, labels], labels [n] -> the figure."""

    title: str
    of: Callable[[Floats, Floats], float]


def metrics_of(probabilities: Floats, labels: Floats) -> Metrics:
    """Probabilities [n, labels], labels [n]. ValueError without items or with NaN."""
    if not len(labels):
        raise ValueError("got 0 items; expected one or more to measure on")
    if not np.isfinite(probabilities).all():
        raise ValueError("got NaN or infinite probabilities; expected finite ones: the model has diverged")
    return {"count": len(labels)} | {name: float(metric.of(probabilities, labels)) for name, metric in METRICS.items()}


def weighted_f1(probabilities: Floats, labels: Floats) -> float:
    """Mean over the labels, each weighed by how many items have it."""
    confusion = confusion_matrix(probabilities, labels)
    return float(f1_per_label(confusion) @ confusion.sum(axis=1) / len(labels))


def macro_f1(probabilities: Floats, labels: Floats) -> float:
    """Mean over the labels that occur or are predicted."""
    confusion = confusion_matrix(probabilities, labels)
    return float(f1_per_label(confusion)[(confusion.sum(axis=0) + confusion.sum(axis=1)) > 0].mean())


def accuracy(probabilities: Floats, labels: Floats) -> float:
    """Share of the items whose most probable label is true."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def confusion_matrix(probabilities: Floats, labels: Floats) -> Floats:
    """[labels, labels] counts: row = truth, column = prediction."""
    count = probabilities.shape[1]
    flat = labels * count + probabilities.argmax(axis=1)
    counts: Floats = np.bincount(flat, minlength=count * count).reshape(count, count)
    return counts


def f1_per_label(confusion: Floats) -> Floats:
    """[labels]; 0 for a label that neither occurs nor is predicted."""
    hits = np.diag(confusion)
    f1: Floats = 2 * hits / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1), 1)
    return f1


def cross_entropy(probabilities: Floats, labels: Floats) -> float:
    """Mean negative log-probability of the truth, in nats."""
    found = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return abs(float(np.log(found.clip(LOWEST_P)).mean()))


def expected_calibration_error(probabilities: Floats, labels: Floats, bins: int = ECE_BINS) -> float:
    """Mean distance of confidence from accuracy over bins of equal width, weighed by how many fall into each."""
    return float(
        sum(
            share * abs(accuracy - confidence)
            for share, confidence, accuracy in reliability(probabilities, labels, bins)
        )
    )


def reliability(probabilities: Floats, labels: Floats, bins: int = ECE_BINS) -> list[tuple[float, float, float]]:
    """(share of the items, mean confidence, accuracy) of each bin of confidence that holds any."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (0, 1/bins], …
    return [
        (float(inside.mean()), float(confidence[inside].mean()), float(correct[inside].mean()))
        for inside in (bin_of == index for index in range(bins))
        if inside.any()
    ]


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """[n, labels] -> probabilities."""
    probabilities: Floats = special.softmax(logits.astype(np.float64) / temperature, axis=1)
    return probabilities


def best_temperature(logits: Floats, labels: Floats) -> float:
    """The temperature of the least cross-entropy, which is unimodal in its logarithm."""

    def loss(at: float) -> float:
        return cross_entropy(softmax(logits, float(np.exp(at))), labels)

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x))


METRICS: Registry[Metric] = Registry(
    "metric",
    "cmt_triton.metrics",
    Metric,
    {
        "weighted_f1": Metric("weighted F1", weighted_f1),
        "macro_f1": Metric("macro F1", macro_f1),
        "accuracy": Metric("accuracy", accuracy),
        "cross_entropy": Metric("cross-entropy", cross_entropy),  # in nats
        "ece": Metric("ECE", expected_calibration_error),
    },
)
