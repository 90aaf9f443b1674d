"""Weighted F1 of every rung on each data set, and accuracy by kind on the first: the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from cmt_training.compare.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 90


def figure_of(results: Results) -> bytes:
    """Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    several = len(next(iter(results.corpora.values())).kinds) > 1
    left, *right = figure.subplots(1, 1 + several, sharey=True, squeeze=False)[0]
    _scores(left, results)
    for axes in right:
        _kinds(axes, results)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()


def _scores(axes: Axes, results: Results) -> None:
    rungs = list(next(iter(results.corpora.values())).rungs)
    for number, (name, ladder) in enumerate(results.corpora.items()):
        found = [ladder.rungs[rung].weighted_f1 for rung in ladder.rungs]
        means = [each.mean for each in found]
        sizes = [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]
        places = np.array([rungs.index(rung) for rung in ladder.rungs]) + 0.2 * (number - 0.5)
        axes.errorbar(means, places, xerr=sizes, fmt="o", capsize=3, markersize=4, label=name)
    axes.set_yticks(range(len(rungs)), rungs)
    axes.invert_yaxis()
    axes.set(xlabel="weighted F1, mean and 95 % interval over seeds", title="Each fusion on the same tokens")
    axes.legend(loc="lower left")
    axes.grid(axis="x", alpha=0.3)


def _kinds(axes: Axes, results: Results) -> None:
    name, ladder = next(iter(results.corpora.items()))
    kinds = list(ladder.kinds)
    table = np.array([[ladder.rungs[rung].kinds[kind] for kind in kinds] for rung in ladder.rungs])
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(kinds)), [f"{kind}\n{count} items" for kind, count in ladder.kinds.items()])
    for row, column in np.ndindex(table.shape):
        colour = "white" if table[row, column] > 0.6 else "black"
        axes.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set(title=f"Accuracy on {name}")
