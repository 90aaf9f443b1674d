"""Figures of an evaluation, each as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cmt_training.evaluation import Evaluation
from cmt_training.metrics import ECE_BINS, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


DPI = 120


def figures_of(evaluation: Evaluation) -> dict[str, bytes]:
    """Name -> PNG."""
    figures = {
        "confusion": drawn(lambda axes: _confusion(axes, evaluation.labels, evaluation.confusion), (5.5, 5.0)),
        "calibration": drawn(lambda axes: _calibration(axes, evaluation), (5.0, 4.5)),
        "subsets": drawn(lambda axes: _subsets(axes, evaluation.subsets), (6.0, 3.5)),
    }
    return figures | {
        f"robustness_{name}": drawn(partial(_curve, name=name, points=points), (5.0, 3.5))
        for name, points in evaluation.curves.items()
    }


def drawn(draw: Callable[[Axes], None], size: tuple[float, float]) -> bytes:
    """A figure of one pair of axes; size: inches. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()


def _confusion(axes: Axes, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    table = np.array(counts, np.float64)
    shares = table / table.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for row, column in np.ndindex(table.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion (shade: share of the row)")


def _calibration(axes: Axes, evaluation: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    for when, metrics in evaluation.stages.items():
        bins = np.array(evaluation.reliability[when])
        axes.plot(bins[:, 1], bins[:, 2], marker="o", label=f"{when} calibration, ECE {metrics['ece']:.3f}")
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"Calibration, {ECE_BINS} bins", xlim=(0, 1), ylim=(0, 1))
    axes.legend()


def _subsets(axes: Axes, subsets: Mapping[str, Metrics]) -> None:
    names = list(subsets)[::-1]
    axes.barh(names, [subsets[name]["weighted_f1"] for name in names])
    for row, name in enumerate(names):
        axes.text(subsets[name]["weighted_f1"], row, f" {subsets[name]['weighted_f1']:.3f}", va="center", fontsize=8)
    axes.set(xlabel="weighted F1", title="With these modalities alone", xlim=(0, 1.1))


def _curve(axes: Axes, name: str, points: Sequence[tuple[float, Metrics]]) -> None:
    rates = [rate for rate, _ in points]
    axes.plot(rates, [metrics["weighted_f1"] for _, metrics in points], marker="o", label="weighted F1")
    axes.plot(rates, [metrics["ece"] for _, metrics in points], marker="s", label="ECE")
    axes.set(xlabel=f"rate of {name}", title=f"Robustness: {name}", ylim=(0, 1))
    axes.legend()
