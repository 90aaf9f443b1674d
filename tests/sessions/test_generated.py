"""Generated sessions: the same for a seed, calibrated as they claim, and the scores that are taken of them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cmt_perf import session_trial
from cmt_perf.session_scores import METHODS, Scores, argmax, change_points, scores, timelines, tracked
from cmt_session import Observation, TrackerOptions
from cmt_session.generated import Arrival, GeneratedSession, Scenario, Spell, generated_session

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / session_trial.RESULT).read_text())
ROWS = {(row["scenario"], row["method"]): row for row in RESULT["rows"]}
RAW, OURS = "single answers, argmax", "+ hysteresis: tracked"


def test_a_seed_makes_one_session() -> None:
    one, again, other = (generated_session(seed, Scenario(seconds=60)) for seed in (3, 3, 4))
    assert one == again != other
    assert [spell.start_s for spell in one.truth[1:]] == [spell.end_s for spell in one.truth[:-1]]
    assert [arrival.at_s for arrival in one.arrivals] == sorted(arrival.at_s for arrival in one.arrivals)


@pytest.mark.long
def test_single_answers_are_calibrated() -> None:
    """Of the answers that are p sure, p are right; without what a person and a drift add, which no answer can know."""
    scenario = Scenario(seconds=600, person=0, drift=0, fade_s=1e-6, dropouts_per_min=0, turn_modalities=())
    sure, right = [], []
    for seed in range(4):
        session = generated_session(seed, scenario)
        for seen in session.events:
            spell = next(s for s in session.truth if s.start_s <= seen.end_s < s.end_s or s is session.truth[-1])
            best = max(seen.probabilities, key=lambda label: seen.probabilities[label])
            sure.append(seen.probabilities[best])
            right.append(best == spell.label)
    for low, high in ((0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        inside = [(p, hit) for p, hit in zip(sure, right, strict=True) if low <= p < high]
        assert np.mean([hit for _, hit in inside]) == pytest.approx(np.mean([p for p, _ in inside]), abs=0.05)


def shown_every_second(labels: str) -> tuple[GeneratedSession, list[str | None]]:
    """A person who is calm for 10 s and then angry for 10 s, and what is shown each second: c, a, or nothing."""
    names = {"c": "calm", "a": "anger", " ": None}
    events = tuple(Arrival(float(second), Observation(second, second)) for second in range(len(labels)))
    return GeneratedSession((Spell("calm", 0, 10), Spell("anger", 10, 20)), events), [names[c] for c in labels]


@pytest.mark.parametrize(
    ("shown", "flickers", "agreement", "answered", "delay_s"),
    [
        ("ccccccccccaaaaaaaaaa", 1, 1.0, 1.0, 1.0),
        ("cccccccccccccaaaaaaa", 1, 0.85, 1.0, 4.0),
        ("cacccccccccccccccccc", 2, 0.45, 1.0, None),
        ("  ccccccccccccaaaaaa", 2, 0.7, 0.9, 5.0),
    ],
)
def test_scores_are_what_a_hand_would_count(
    shown: str, flickers: int, agreement: float, answered: float, delay_s: float | None
) -> None:
    found = Scores()
    found.add(*shown_every_second(shown))
    assert found.flickers == flickers
    assert found.row()["agreement"] == pytest.approx(agreement)
    assert found.row()["answered"] == pytest.approx(answered)
    assert found.delays_s == ([] if delay_s is None else [pytest.approx(delay_s)])
    assert found.row()["missed"] == (delay_s is None)


def test_tracked_labels_flicker_less_and_agree_more_than_single_answers() -> None:
    """On sessions of neither the search nor the report."""
    sessions = session_trial.generated(session_trial.USUAL, 77_000, 4)
    raw, ours = (scores(sessions, method, TrackerOptions()).row() for method in (argmax, tracked))
    assert ours["changes_shown_per_min"] < raw["changes_shown_per_min"] / 5
    assert ours["agreement"] > raw["agreement"] + 0.1
    shown, truth = timelines(sessions[0], argmax(sessions[0], TrackerOptions()))
    assert len(shown) == len(truth) == 1_800


def test_the_search_finds_the_better_options() -> None:
    own = [session_trial.generated(replace(session_trial.USUAL, seconds=60), 88_000, 2)]
    good, bad = TrackerOptions(), replace(TrackerOptions(), dwell_s=60.0)
    assert session_trial.worth(good, own) > session_trial.worth(bad, own)
    assert len({options.digest for options in session_trial.candidates(20)}) > 15


def test_the_defaults_are_those_that_the_report_is_of() -> None:
    assert RESULT["conditions"]["options"] == json.loads(json.dumps(asdict(TrackerOptions())))
    assert {scenario for scenario, _ in ROWS} == set(session_trial.SCENARIOS)
    assert {method for _, method in ROWS} == set(METHODS)
    tuned = RESULT["conditions"]["tuned_on"]
    assert tuned["seeds_from"] > RESULT["conditions"]["sessions"]  # seeds of the report start at 0


def test_a_row_of_the_report_is_made_again() -> None:
    sessions = session_trial.generated(session_trial.TEXT, 0, RESULT["conditions"]["sessions"])
    assert scores(sessions, tracked, TrackerOptions()).row() == pytest.approx(
        {name: value for name, value in ROWS["text alone", OURS].items() if name not in ("scenario", "method")},
        abs=0.02,
    )


def test_the_page_has_the_figures_of_the_report() -> None:
    page = (ROOT / "docs" / "sessions.md").read_text()
    for scenario in session_trial.SCENARIOS:
        raw, ours = ROWS[scenario, RAW], ROWS[scenario, OURS]
        cells = [
            f"{raw['changes_shown_per_min']:.1f} → **{ours['changes_shown_per_min']:.1f}**",
            f"{raw['agreement']:.2f} → **{ours['agreement']:.2f}**",
            f"{ours['answered']:.2f}",
            f"{raw['delay_p50_s']:.1f} → **{ours['delay_p50_s']:.1f}**",
            f"{raw['missed']:.2f} → **{ours['missed']:.2f}**",
        ]
        assert re.search(rf"^\| {re.escape(scenario)} \| {re.escape(' | '.join(cells))} \|$", page, re.MULTILINE), cells
    usual, mean = ROWS["usual", OURS], ROWS["usual", "mean of the last 3 s, argmax"]
    points = next(row for row in RESULT["change_points"] if row["scenario"] == "usual")
    told = " ".join(page.split())
    for sentence in (
        f"shows {mean['changes_shown_per_min']:.1f} changes a minute in the usual sessions, with an agreement of "
        f"{mean['agreement']:.2f} and a delay of {mean['delay_p50_s']:.1f} s",
        f"of the changes {points['recall']:.2f} are found before the next one, {points['delay_p50_s']:.1f} s after "
        f"them at the median, and {points['precision']:.2f} of what is found is one",
        f"Truth changes {usual['changes_true_per_min']:.1f} times a minute, "
        f"{ROWS['brief states', OURS]['changes_true_per_min']:.1f} times with brief states",
    ):
        assert sentence in told


def test_change_points_are_counted_by_hand() -> None:
    """Neutral for 30 s, then angry for 30 s, seen without noise: one change, found soon, where it was."""
    clear = Scenario(seconds=60, person=0, drift=0, dropouts_per_min=0, turn_modalities=(), frame_separation=6)
    truth = (Spell("neutral", 0, 30), Spell("anger", 30, 60))
    row = change_points([generated_session(1, clear, truth)], TrackerOptions())
    assert (row["found"], row["true"], row["precision"], row["recall"]) == (1, 1, 1, 1)
    assert row["began_off_p50_s"] <= 1
    assert 0 < row["delay_p50_s"] < 4
