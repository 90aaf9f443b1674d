"""A session as a picture: probabilities, steady label, the policy's state and its actions. Needs matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_session.session import Step

WIDTH_IN, DPI = 11, 110
NARROW = 0.06  # of the width
PALE = ("#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffff99", "#e5c494")


def check_matplotlib() -> None:
    """ValueError where it isn't installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"a picture needs matplotlib ({error}): pip install matplotlib, or leave --picture out"
        ) from None


def strip(axes: Any, spans: Sequence[tuple[str, float, float]], colours: Mapping[str, str], title: str) -> None:
    """Stretches of time (name, start, end) in the colours of their names; nothing where a name has none."""
    for name, start_s, end_s in spans:
        if name in colours:
            axes.axvspan(start_s, end_s, color=colours[name], linewidth=0)
    axes.set(yticks=[], ylim=(0, 1))
    axes.set_ylabel(title, rotation=0, ha="right", va="center")


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in order of first sight."""
    return {name: f"C{place % 10}" for place, name in enumerate(dict.fromkeys(names))}


def legend(axes: Any, colours: Mapping[str, str]) -> None:
    """The names beside their colours, above the axes."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, ncols=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)


def spans_of(values: Sequence[tuple[float, str]]) -> list[tuple[str, float, float]]:
    """Values with the times from which they hold, as (value, start, end); equal neighbours are one."""
    found = []
    for value, group in itertools.groupby(values, key=lambda pair: pair[1]):
        found.append((value, next(iter(group))[0]))
    ends = [start_s for _, start_s in found[1:]] + ([values[-1][0]] if values else [])
    return [(value, start_s, end_s) for (value, start_s), end_s in zip(found, ends, strict=True)]


def draw(steps: Sequence[Step], path: Path, title: str) -> None:
    """Writes a PNG, SVG or PDF, by the path's suffix. ValueError for a session without events, or another suffix."""
    check_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not steps:
        raise ValueError("got a session without events; expected one or more")
    names = {"shares": 4.0, "label": 0.6, "state": 0.6, "action": 1.8}
    figure, axes = pyplot.subplot_mosaic(
        [[name] for name in names],
        figsize=(WIDTH_IN, 6),
        height_ratios=list(names.values()),
        sharex=True,
        layout="constrained",
    )
    colours = colours_of(label for step in steps for label in step.reading.probabilities)
    _draw_shares(axes["shares"], steps, colours)
    strip(axes["label"], spans_of([(s.reading.clock_s, s.reading.label or "") for s in steps]), colours, "steady label")
    states = [(s.reading.clock_s, s.decision.state) for s in steps if s.decision]
    begin_s, end_s = steps[0].reading.clock_s, steps[-1].reading.clock_s
    _draw_states(axes["state"], spans_of(states), NARROW * (end_s - begin_s))
    axes["state"].set_xlim(begin_s, end_s + 1e-3)
    _draw_actions(axes["action"], steps)
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=DPI)
    finally:
        pyplot.close(figure)


def _draw_shares(axes: Any, steps: Sequence[Step], colours: Mapping[str, str]) -> None:
    times = [step.reading.clock_s for step in steps]
    for label, colour in colours.items():
        shares = [step.reading.probabilities.get(label, float("nan")) for step in steps]
        axes.plot(times, shares, color=colour, linewidth=1.2)
    for step in steps:
        if step.reading.change:
            axes.axvline(step.reading.change.began_s, color="gray", linestyle=":", linewidth=1)
    axes.set(ylim=(0, 1), ylabel="smoothed probability")
    axes.grid(alpha=0.3)
    legend(axes, colours)


def _draw_states(axes: Any, spans: Sequence[tuple[str, float, float]], narrow_s: float) -> None:
    """Named where a stretch is wide enough for its name."""
    colours = {name: PALE[place % len(PALE)] for place, name in enumerate(sorted({name for name, _, _ in spans}))}
    strip(axes, spans, colours | {"no_evidence": "#c4c4c4", "unsettled": "#f0f0f0"}, "state")
    for name, start_s, end_s in spans:
        if end_s - start_s > narrow_s:
            axes.text((start_s + end_s) / 2, 0.5, name, ha="center", va="center", fontsize=7, clip_on=True)


def _draw_actions(axes: Any, steps: Sequence[Step]) -> None:
    acts = [(step.reading.clock_s, step.decision) for step in steps if step.decision and step.decision.kind == "act"]
    rows = {action: place for place, action in enumerate(dict.fromkeys(act.action for _, act in acts))}
    for at_s, act in acts:
        axes.plot(
            at_s, rows[act.action], "X" if act.hand_off_to else "o", color="tab:red" if act.hand_off_to else "black"
        )
    axes.set(yticks=list(rows.values()), ylim=(len(rows) - 0.5, -0.5), xlabel="seconds; dotted: change points")
    axes.set_yticklabels([str(action) for action in rows])
    axes.set_ylabel("actions\n(x: to a person)", fontsize=8)
    axes.grid(alpha=0.3)
