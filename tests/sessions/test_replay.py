"""What holds for any session: properties, over events that are late, doubled, doubtful, or of another release."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_pipeline.labels import LABEL_SETS
from cmt_session import Observation, Policy, SessionState, Step, TrackerOptions, advance, shipped_policy
from cmt_session.policy_state import MAX_SPANS
from cmt_session.session import MAX_STATE_BYTES
from cmt_session.tracker import observe, track
from cmt_session.tracker_state import TrackerState
from session_events import observations, of, sessions

POLICIES = {name: shipped_policy(name) for name in ("customer_service", "tutoring")}
policies = st.sampled_from([None, *POLICIES.values()])


def replayed(
    events: list[Observation], policy: Policy | None, state: SessionState | None = None
) -> tuple[SessionState, list[Step]]:
    state, steps = state or SessionState(), []
    for seen in events:
        state, step = advance(state, seen, policy)
        steps.append(step)
    return state, steps


@settings(max_examples=25)
@given(sessions(), policies, st.lists(st.integers(1, 7), min_size=1))
def test_replays_in_parts_of_any_size_decide_the_same(
    events: list[Observation], policy: Policy | None, sizes: list[int]
) -> None:
    """Each part by itself, from a state that was written and read between them: a reconnect to another machine."""
    whole = replayed(events, policy)
    state, steps, begin = SessionState(), [], 0
    while begin < len(events):
        size = sizes[begin % len(sizes)]
        state, more = replayed(events[begin : begin + size], policy, SessionState.from_json(state.to_text()))
        steps += more
        begin += size
    assert (state, steps) == whole


@pytest.mark.long
@settings(max_examples=25)
@given(sessions(), policies)
def test_a_state_survives_json_after_any_event(events: list[Observation], policy: Policy | None) -> None:
    state = SessionState()
    for seen in events:
        state, step = advance(state, Observation.from_json(json.dumps(seen.to_json())), policy)
        assert SessionState.from_json(json.loads(state.to_text())) == SessionState.from_json(state.to_text()) == state
        json.dumps(step.to_json(), allow_nan=False)


@settings(max_examples=25)
@given(sessions(), st.randoms(use_true_random=False))
def test_what_came_before_changes_nothing_when_it_comes_again(events: list[Observation], chance: object) -> None:
    """Late or doubled: the state stays what it was, and the answer says so."""
    policy, state = POLICIES["tutoring"], SessionState()
    for place, seen in enumerate(events):
        state, _ = advance(state, seen, policy)
        again = events[chance.randrange(place + 1)]  # type: ignore[attr-defined]
        stream = state.tracker.streams.get("_".join(again.modalities))
        if stream is None:  # it was too late for the session
            continue
        after, step = advance(state, again, policy)
        assert after == state
        assert step.reading.outcome in ("late", "duplicate")
        assert step.decision is not None
        assert step.decision.kind == "hold"


@settings(max_examples=25)
@given(sessions())
def test_probabilities_stay_a_distribution_and_states_small(events: list[Observation]) -> None:
    for state, reading in track(TrackerState(), events):
        shares = reading.probabilities
        assert not shares or math.isclose(math.fsum(shares.values()), 1, abs_tol=1e-9)
        assert all(0 <= p <= 1 for p in shares.values())
        assert (reading.standing == "no_evidence") == (not shares)
        assert (reading.standing == "steady") == (reading.label is not None)
        assert len(state.streams) <= 8


@settings(max_examples=25)
@given(sessions(ordered=True), st.data())
def test_nothing_depends_on_what_comes_later(events: list[Observation], data: st.DataObject) -> None:
    """Causal: the same beginning, another end."""
    cut = data.draw(st.integers(0, len(events)))
    other = [data.draw(observations(events[cut - 1].end_s + 1 if cut else 1.0))]
    assert replayed(events[:cut] + other, None)[1][:cut] == replayed(events, None)[1][:cut]


@given(st.integers(1, 40))
def test_how_often_one_looks_decides_nothing(parts: int) -> None:
    """A constant picture for 4 s after another gives the same, in however many events."""
    state, _ = observe(TrackerState(), of("neutral", 0))
    *_, (cut, _) = track(state, [of("anger", 4 * (n + 1) / parts) for n in range(parts)])
    at_once, _ = observe(state, of("anger", 4.0))
    assert cut.streams["image"].shares == pytest.approx(at_once.streams["image"].shares, abs=1e-12)


@pytest.mark.long
@settings(max_examples=25)
@given(sessions(ordered=True))
def test_streams_are_smoothed_whatever_arrives_between(events: list[Observation]) -> None:
    """Within the allowed lateness two streams may arrive in any order: each is smoothed by its own times."""
    one = [replace(seen, modalities=("image",)) for seen in events if seen.probabilities]
    one = [replace(seen, probabilities=of("joy", 0).probabilities, digest="one") for seen in one]
    two = [replace(of("anger", seen.end_s + 0.25), modalities=("audio", "text")) for seen in one]
    options = TrackerOptions(max_lateness_s=3_600)
    orders = (one + two, two + one, [seen for pair in zip(one, two, strict=True) for seen in pair])
    results = [list(track(TrackerState(), order, options))[-1:] for order in orders]
    streams = [[state.streams for state, _ in last] for last in results]
    assert streams[0] == streams[1] == streams[2]


def test_the_largest_state_is_read_again() -> None:
    labels = tuple(f"{'label of a long name ' * 2}{n:02}" for n in range(64))
    policy, state = POLICIES["customer_service"], SessionState()
    streams = (
        ("image", "audio", "text"),
        ("image", "audio"),
        ("image", "text"),
        ("audio", "text"),
        ("image",),
        ("audio",),
        ("text",),
    )
    for second in range(400):
        p = 0.6 + second % 7 / 31
        seen = of(
            labels[second // 2 % 64], second * 2.0, p=p, labels=labels, modalities=streams[second % 7], digest="d" * 128
        )
        state, _ = advance(state, replace(seen, start_s=0.0, valence=-1 / 3, arousal=1 / 3), policy)
    assert len(state.tracker.labels) == 64
    assert len(state.policy.spans) <= MAX_SPANS
    assert len(state.to_text()) < MAX_STATE_BYTES
    assert SessionState.from_json(state.to_text()) == state


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_a_session_with_each_label_set_fits_a_message(label_set: str) -> None:
    labels = LABEL_SETS[label_set]
    state, _ = replayed([of(labels[n % 2], n / 3, labels=labels, p=0.77) for n in range(300)], POLICIES["tutoring"])
    assert len(state.to_text()) < 8_192
