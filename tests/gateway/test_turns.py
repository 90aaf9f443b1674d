"""Turns are cut where speech begins and ends, whatever the probabilities."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmt_gateway.live.turns import Began, Ended, Event, Paused, Resumed, TurnCutter, TurnOptions

CHUNK_S = 0.032


def cut(probabilities: list[float], options: TurnOptions | None = None) -> list[Event]:
    cutter = TurnCutter(options)
    return [
        event
        for number, probability in enumerate(probabilities)
        for event in cutter.feed(probability, number * CHUNK_S, (number + 1) * CHUNK_S)
    ]


def chunks(seconds: float, probability: float) -> list[float]:
    return [probability] * round(seconds / CHUNK_S)


def test_a_turn_pauses_and_ends_after_silence() -> None:
    found = cut(chunks(0.96, 0.0) + chunks(0.96, 0.9) + chunks(0.96, 0.1))
    began, paused, ended = found
    assert isinstance(began, Began)
    assert began.start_s == pytest.approx(0.96 - 0.1)
    assert isinstance(paused, Paused)
    assert ended == Ended(paused.start_s, paused.end_s, "silence"), "what was asked for in the pause is the turn"
    assert ended.end_s == pytest.approx(1.92 + 0.1)


def test_a_breath_is_no_end() -> None:
    kinds = [type(event) for event in cut(chunks(1, 0.9) + chunks(0.26, 0.1) + chunks(1, 0.9) + chunks(1, 0.0))]
    assert kinds == [Began, Paused, Resumed, Paused, Ended]


def test_between_the_thresholds_speech_goes_on_and_silence_does() -> None:
    assert [type(e) for e in cut(chunks(1, 0.9) + chunks(1, 0.4))] == [Began], "still speaking"
    assert [type(e) for e in cut(chunks(1, 0.9) + chunks(0.1, 0.1) + chunks(1, 0.4))] == [Began, Paused, Ended]
    assert cut(chunks(3, 0.4)) == []


def test_a_click_is_no_turn() -> None:
    assert cut((chunks(0.1, 0.99) + chunks(0.5, 0.0)) * 5) == []


def test_long_speech_is_cut_without_a_hole() -> None:
    found = cut(chunks(12, 0.9) + chunks(1, 0.0), TurnOptions(most_s=5.0))
    ended = [event for event in found if isinstance(event, Ended)]
    assert [event.why for event in ended] == ["length", "length", "silence"]
    assert [b.start_s for b in ended[1:]] == [a.end_s for a in ended[:-1]]
    assert all(event.end_s - event.start_s <= 5.0 + CHUNK_S for event in ended)


def test_it_ends_when_asked_to() -> None:
    cutter = TurnCutter()
    assert cutter.end(1.0, "asked") == []
    for number in range(20):
        cutter.feed(0.9, number * CHUNK_S, (number + 1) * CHUNK_S)
    (ended,) = cutter.end(20 * CHUNK_S, "asked")
    assert isinstance(ended, Ended)
    assert cutter.since_s is None


@example([(2, 0.0), (87, 1.0), (15, 0.0)])  # as long as a turn may be in the chunk in which it pauses
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), max_size=30))
def test_turns_are_in_order_apart_and_of_speech(runs: list[tuple[int, float]]) -> None:
    probabilities = [probability for count, probability in runs for _ in range(count)]
    found = cut(probabilities, TurnOptions(most_s=3.0))
    ended = [event for event in found if isinstance(event, Ended)]
    for first, second in pairwise(ended):
        assert first.end_s <= second.start_s
    for event in ended:
        assert event.end_s - event.start_s <= 3.0 + CHUNK_S
        inside = probabilities[round(event.start_s / CHUNK_S) : round(event.end_s / CHUNK_S) + 1]
        assert np.max(inside) >= 0.35
    begun = sum(isinstance(event, Began) for event in found)
    assert begun in (len(ended), len(ended) + 1)
