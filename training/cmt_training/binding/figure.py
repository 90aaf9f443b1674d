"""Accuracy against length for every rung, one panel a kind, as the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from cmt_training.binding.family import KINDS, Kind, ceiling
from cmt_training.binding.ladder import RUNGS
from cmt_training.binding.results import Results
from cmt_training.figures import DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
STYLES = {"image": ":", "audio": ":", "text": ":", "log-linear": "--", "stacked": "--"}


def figure_of(results: Results) -> bytes:
    """Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(each.kind == kind for each in results.cells)]
    rows = -(-len(kinds) // COLUMNS)
    figure = Figure(figsize=(12.5, 0.5 + 3.5 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, min(len(kinds), COLUMNS), sharey=True, squeeze=False)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        _panel(axes, results, kind)
    for axes in panels.flat[len(kinds) :]:
        axes.remove()
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()


def _panel(axes: Axes, results: Results, kind: Kind) -> None:
    cells = sorted((each for each in results.cells if each.kind == kind), key=lambda each: each.length)
    lengths = [each.length for each in cells]
    for number, rung in enumerate(RUNGS):
        found = [each.accuracies[rung] for each in cells]
        axes.errorbar(
            [length * 1.02 ** (number - len(RUNGS) / 2) for length in lengths],  # apart, where they tie
            [each.mean for each in found],
            yerr=[[each.mean - each.low for each in found], [each.high - each.mean for each in found]],
            label=rung,
            color=f"C{number}" if number < 10 else "black",
            linestyle=STYLES.get(rung, "-"),
            marker="o",
            markersize=3,
            capsize=2,
        )
    axes.axhline(ceiling(kind), color="grey", linewidth=0.8)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / 1.5, lengths[-1] * 1.5)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set(title=kind, xlabel="tokens of each modality", ylabel="accuracy", ylim=(0.4, 1.03))
