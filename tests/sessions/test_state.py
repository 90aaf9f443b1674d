"""States come back from outside: whatever isn't one is refused by a typed error, and whatever is taken can go on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_session import InvalidEvent, InvalidState, Observation, SessionState, advance, shipped_policy
from session_events import MELD, of, sessions

POLICY = shipped_policy("customer_service")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
VALUES = JSON | st.sampled_from([-1, 0, 0.5, 1e308, 10**400, "", "anger", [], {}, [0.5, 0.5], ["a", "b"]])


def grown() -> dict[str, Any]:
    """A state with something in each of its fields."""
    state = SessionState()
    for n in range(80):
        seen = of(
            "anger" if n > 20 else "neutral", n, modalities=("image",) if n % 4 else ("audio", "text"), valence=0.1
        )
        state, _ = advance(state, seen, POLICY)
    found: dict[str, Any] = json.loads(state.to_text())
    assert found["policy"]["fired"]
    assert found["tracker"]["label"] == "anger"
    return found


GROWN = grown()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def with_change(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in a place; `...` removes it."""
    if not path:
        return new
    changed = copy.deepcopy(value)
    there = changed
    for key in path[:-1]:
        there = there[key]
    if new is ...:
        del there[path[-1]]
    else:
        there[path[-1]] = new
    return changed


def goes_on_or_is_refused(state: Any) -> None:
    try:
        read = SessionState.from_json(state)
    except InvalidState:
        return
    for seen in (of("anger", 80), of("joy", 81, labels=(*MELD, "calm"), digest="two"), Observation(250, 250)):
        read, _ = advance(read, seen, POLICY)
    assert SessionState.from_json(read.to_text()) == read


@pytest.mark.parametrize("path", list(places(GROWN)), ids=lambda path: ".".join(map(str, path)) or "state")
def test_a_state_that_lacks_anything_or_holds_nonsense_is_refused(path: tuple[Any, ...]) -> None:
    for new in (None, -1, 1e308, "\x00", "x" * 70_000, [], [[]], {}, {"x": 1}, True, float("nan"), 10**400):
        goes_on_or_is_refused(with_change(GROWN, path, new))
    if path:
        goes_on_or_is_refused(with_change(GROWN, path, ...))


@pytest.mark.long
@settings(max_examples=200)
@given(st.sampled_from(list(places(GROWN))), VALUES)
def test_a_state_with_anything_anywhere_is_refused_or_goes_on(path: tuple[Any, ...], new: Any) -> None:
    goes_on_or_is_refused(with_change(GROWN, path, new))


@given(JSON | st.text() | st.binary())
def test_what_no_session_wrote_is_refused(value: Any) -> None:
    with pytest.raises(InvalidState, match="got"):
        SessionState.from_json(value)
    with pytest.raises(InvalidEvent, match="got"):
        Observation.from_json(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"version":' + "9" * 5_000 + "}",
        '{"version":1,"version":1}',
        '{"version":NaN}',
        b"\xff\xfe",
        "\ud800",
        "{}" + " " * 200_000,
        json.dumps({**GROWN, "version": 2}),
        json.dumps({**GROWN, "more": 1}),
    ],
    ids=repr,
)
def test_texts_that_are_no_state_are_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidState, match="got"):
        SessionState.from_json(text)


def test_an_error_names_the_place() -> None:
    broken = with_change(GROWN, ("tracker", "streams", "image", "shares", 0), 0.9)
    with pytest.raises(InvalidState, match=r"^state\.tracker\.streams\.image\.shares: got .*; expected .* together 1$"):
        SessionState.from_json(broken)
    with pytest.raises(InvalidState, match=r"^state\.version: got 2; expected 1; begin a new session$"):
        SessionState.from_json({**GROWN, "version": 2})


@settings(max_examples=30)
@given(sessions())
def test_observations_survive_json(events: list[Observation]) -> None:
    for seen in events:
        again = Observation.from_json(json.dumps(seen.to_json()))
        assert again.probabilities == pytest.approx(seen.probabilities, abs=1e-15)
        assert (again.end_s, again.modalities, again.quality) == (seen.end_s, seen.modalities, seen.quality)
