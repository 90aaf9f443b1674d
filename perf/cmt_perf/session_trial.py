"""`make bench-sessions`: shown labels against known truth, technique by technique. Writes perf/results/sessions.*

Sessions are generated (`cmt_session.generated`); parameters are tuned on others than those that are reported, and of
two scenarios alone. Nothing here is timed: the figures are the same on every machine.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmt_perf.conditions import conditions, to_text
from cmt_perf.session_scores import METHODS, STEP_S, argmax, change_points, scores, timelines, tracked
from cmt_session.generated import GeneratedSession, Scenario, generated_session
from cmt_session.options import StreamOptions, TrackerOptions

RESULT = Path("perf/results/sessions.json")
SESSIONS = 60  # reported, a scenario: seeds 0, 1, …
TUNING_SESSIONS, TUNING_SEED = 12, 1_000_000  # seeds from there on
CANDIDATES = 100
FLICKER_COST = 0.02  # of agreement, for a change a minute

USUAL, TEXT = Scenario(), Scenario(frames_hz=0, turn_modalities=("text",))
TUNED_ON = {"usual": USUAL, "text alone": TEXT}
SCENARIOS: dict[str, Scenario] = {
    **TUNED_ON,
    "noisier": replace(USUAL, frame_separation=1.2, turn_separation=1.9),
    "many drop-outs": replace(USUAL, dropouts_per_min=4.0),
    "camera alone": replace(USUAL, turn_modalities=()),
    "brief states": replace(USUAL, spell_s=(2.0, 5.0)),
    "another release at half-time": replace(
        USUAL,
        later_labels=("neutral", "surprise", "fear", "sadness", "happiness", "disgust", "anger", "contempt"),
    ),
}
#: Values that the search draws from.
SEARCHED: dict[str, Sequence[float]] = {
    "frames.tau_s": (0.7, 1.0, 1.5, 2.0, 2.5),
    "frames.hold_s": (4.0, 6.0),
    "turns.tau_s": (1.0, 2.0, 4.0),
    "turns.hold_s": (12.0, 20.0),
    "turns.weight": (0.5, 1.0, 2.0),
    "enter": (0.3, 0.35, 0.4, 0.45, 0.5),
    "exit": (0.15, 0.2, 0.25, 0.3),
    "dwell_s": (0.3, 0.6, 1.0, 1.5),
    "min_probability": (0.35, 0.4, 0.5, 0.6),
}


def generated(scenario: Scenario, first_seed: int, count: int) -> list[GeneratedSession]:
    return [generated_session(first_seed + number, scenario) for number in range(count)]


def candidates(count: int, seed: int = 0) -> list[TrackerOptions]:
    """Options drawn from the table."""
    chance, found = random.Random(seed), []  # noqa: S311  # no secret
    for _ in range(count):
        drawn = {name: chance.choice(values) for name, values in SEARCHED.items()}
        drawn["exit"] = min(drawn["exit"], drawn["enter"])
        found.append(options_of(drawn))
    return found


def options_of(drawn: Mapping[str, float]) -> TrackerOptions:
    plain = {name: value for name, value in drawn.items() if "." not in name}
    frames = StreamOptions(drawn["frames.tau_s"], drawn["frames.hold_s"], 1.0)
    turns = StreamOptions(drawn["turns.tau_s"], drawn["turns.hold_s"], drawn["turns.weight"])
    return TrackerOptions(frames=frames, turns=turns, **plain)  # type: ignore[arg-type]  # names of plain floats


def worth(options: TrackerOptions, sessions: Sequence[Sequence[GeneratedSession]]) -> float:
    """Mean agreement less what flicker costs."""
    rows = [scores(some, tracked, options).row() for some in sessions]
    return sum(row["agreement"] - FLICKER_COST * row["changes_shown_per_min"] for row in rows) / len(rows)


def tune(count: int = CANDIDATES, sessions: int = TUNING_SESSIONS) -> TrackerOptions:
    """The best of the drawn options on sessions of their own."""
    own = [generated(scenario, TUNING_SEED * (place + 1), sessions) for place, scenario in enumerate(TUNED_ON.values())]
    return max(candidates(count), key=lambda options: worth(options, own))


def table(options: TrackerOptions, count: int = SESSIONS) -> list[dict[str, Any]]:
    """A row for each scenario and method."""
    rows = []
    for name, scenario in SCENARIOS.items():
        sessions = generated(scenario, 0, count)
        rows += [
            {"scenario": name, "method": m, **scores(sessions, method, options).row()} for m, method in METHODS.items()
        ]
    return rows


def plot(result: Mapping[str, Any], options: TrackerOptions, path: Path) -> None:
    """One reported session, and flicker against agreement."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cmt_session.timeline import colours_of, legend, spans_of, strip

    session = generated_session(0, USUAL)
    raw, truth = timelines(session, argmax(session, options))
    ours, _ = timelines(session, tracked(session, options))
    figure, axes = pyplot.subplot_mosaic(
        [["truth"], ["argmax"], ["tracked"], ["scores"]],
        figsize=(10, 7),
        height_ratios=(1, 1, 1, 9),
        layout="constrained",
    )
    colours = colours_of(sorted({*truth.tolist(), *raw.tolist(), *ours.tolist()} - {""}))
    for name, labels in (("truth", truth), ("argmax", raw), ("tracked", ours)):
        strip(axes[name], spans_of([(n * STEP_S, label) for n, label in enumerate(labels.tolist())]), colours, name)
        axes[name].set_xlim(0, USUAL.seconds)
        axes[name].tick_params(labelbottom=name == "tracked")
    legend(axes["truth"], colours)
    axes["tracked"].set_xlabel("seconds of the first of the reported sessions; white: no label shown")
    markers = dict(zip(METHODS, "sodv^", strict=False))
    for place, scenario in enumerate(SCENARIOS):
        for row in (row for row in result["rows"] if row["scenario"] == scenario):
            axes["scores"].plot(
                row["changes_shown_per_min"],
                row["agreement"],
                markers[row["method"]],
                color=f"C{place}",
                markersize=11 - place,
            )
    for method, marker in markers.items():
        axes["scores"].plot([], [], marker, color="gray", label=method)
    for place, scenario in enumerate(SCENARIOS):
        axes["scores"].plot([], [], "-", color=f"C{place}", linewidth=4, label=scenario)
    axes["scores"].set(xlabel="changes shown a minute", ylabel="agreement with the truth, of all time", xscale="log")
    axes["scores"].legend(frameon=False, ncols=2, fontsize=8)
    axes["scores"].grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(out: Path = RESULT) -> None:
    """Tunes, measures, and writes `out` and its plot."""
    best = tune()
    told = conditions(
        sessions=SESSIONS,
        seconds=USUAL.seconds,
        tuned_on={"scenarios": list(TUNED_ON), "sessions": TUNING_SESSIONS, "seeds_from": TUNING_SEED},
        searched={"candidates": CANDIDATES, "flicker_cost": FLICKER_COST, **SEARCHED},
        options=asdict(best),
    )
    rows = table(best)
    points = [
        {"scenario": name, **change_points(generated(scenario, 0, SESSIONS), best)}
        for name, scenario in SCENARIOS.items()
    ]
    result = {"conditions": told, "rows": rows, "change_points": points}
    out.write_text(to_text(result))
    plot(result, best, out.with_suffix(".png"))
    for scenario, group in itertools.groupby(rows, key=lambda row: row["scenario"]):
        print(scenario)
        for row in group:
            figures = ("changes_shown_per_min", "agreement", "answered", "delay_p50_s", "delay_p90_s", "missed")
            print(f"  {row['method']:30}", *(f"{row[name]:8.2f}" for name in figures))
    print(*points, sep="\n")
    if best != TrackerOptions():
        print(f"the defaults aren't the best options: {best}", file=sys.stderr)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
