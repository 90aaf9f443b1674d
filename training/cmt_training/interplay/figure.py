"""Weighted F1 of every rung on both corpora, and accuracy by the kind of interplay, as the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from cmt_training.interplay.results import Results
from cmt_training.interplay.run import RUNGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 90
WITH = "interplay"


def figure_of(results: Results) -> bytes:
    """Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _scores(left, results)
    _kinds(right, results)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()


def _scores(axes: Axes, results: Results) -> None:
    for number, (name, ladder) in enumerate(results.corpora.items()):
        found = [ladder.rungs[rung].weighted_f1 for rung in ladder.rungs]
        means = [each.mean for each in found]
        sizes = [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]
        places = np.array([RUNGS.index(rung) for rung in ladder.rungs]) + 0.2 * (number - 0.5)
        axes.errorbar(means, places, xerr=sizes, fmt="o", capsize=3, markersize=4, label=name)
    axes.set_yticks(range(len(RUNGS)), RUNGS)
    axes.invert_yaxis()
    axes.set(xlabel="weighted F1, mean and 95 % interval over seeds", title="On each corpus")
    axes.legend(loc="lower left")
    axes.grid(axis="x", alpha=0.3)


def _kinds(axes: Axes, results: Results) -> None:
    ladder = results.corpora[WITH]
    kinds = list(ladder.kinds)
    table = np.array([[ladder.rungs[rung].kinds[kind] for kind in kinds] for rung in RUNGS])
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(kinds)), [f"{kind}\n{count} items" for kind, count in ladder.kinds.items()])
    for row, column in np.ndindex(table.shape):
        colour = "white" if table[row, column] > 0.6 else "black"
        axes.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set(title="Accuracy by the kind of interplay")
