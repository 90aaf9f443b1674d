"""Gate, smoothing, hysteresis, change points and releases, one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cmt_client import EmotionClient
from cmt_client.fake import FakeTransport
from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.labels import LABEL_SETS
from cmt_session import InvalidEvent, Observation, Reading, StreamOptions, TrackerOptions
from cmt_session.tracker import observe, track
from cmt_session.tracker_state import TrackerState
from session_events import MELD, of

AUDIO_TEXT = ("audio", "text")


def readings(events: Iterable[Observation], options: TrackerOptions | None = None) -> list[Reading]:
    return [reading for _, reading in track(TrackerState(), events, options or TrackerOptions())]


def frames(label: str, begin_s: float, end_s: float, **more: Any) -> list[Observation]:
    """Three pictures a second."""
    return [of(label, begin_s + n / 3, **more) for n in range(round((end_s - begin_s) * 3))]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modalities": (), "probabilities": {}}, "absent"),
        ({"quality": {"image": 0.1}}, "poor_input"),
        ({"trained": False}, "untrained"),
        ({"probabilities": dict.fromkeys(MELD, 1 / 7)}, "unlikely"),
        ({"probabilities": {"a": 0.36, **{f"label {n}": 0.64 / 9 for n in range(9)}}}, "spread"),
        ({"modalities": ("image", "text")}, "not_allowed"),
        ({"modalities": ("text",)}, "missing"),
    ],
)
def test_what_is_too_uncertain_counts_for_nothing(change: dict[str, Any], reason: str) -> None:
    options = TrackerOptions(max_entropy=0.85, modalities=("image",), required=("image",))
    state, first = observe(TrackerState(), of("anger", 0), options)
    after, reading = observe(state, replace(of("joy", 1), **change), options)
    assert first.outcome == "used"
    assert reading.outcome == "gated"
    assert reason in reading.refused
    assert reading.probabilities == first.probabilities
    assert after.clock_s == 1


def test_quality_of_a_modality_that_is_not_there_does_not_matter() -> None:
    assert readings([of("anger", 0, quality={"audio": 0.0})])[0].outcome == "used"


def test_smoothing_is_that_of_the_formula() -> None:
    state, _ = observe(TrackerState(), of("anger", 0, p=1.0))
    after, _ = observe(state, of("joy", 1.5, p=1.0))
    alpha = 1 - math.exp(-1.5 / TrackerOptions().frames.tau_s)
    assert dict(zip(MELD, after.streams["image"].shares, strict=True)) == pytest.approx(
        {**dict.fromkeys(MELD, 0.0), "anger": 1 - alpha, "joy": alpha}
    )


def test_each_set_of_modalities_has_its_own_time_constant() -> None:
    options = TrackerOptions(streams={"audio_text": StreamOptions(tau_s=0.01, hold_s=5, weight=3)})
    events = [of("anger", 0, modalities=AUDIO_TEXT), of("anger", 0), of("joy", 1, modalities=AUDIO_TEXT), of("joy", 1)]
    *_, (state, _) = track(TrackerState(), events, options)
    joy = MELD.index("joy")
    assert state.streams["audio_text"].shares[joy] == pytest.approx(0.8)
    assert state.streams["image"].shares[joy] < 0.5


def test_one_odd_picture_changes_nothing() -> None:
    seen = readings([*frames("neutral", 0, 4), of("anger", 4.1, p=0.99), *frames("neutral", 4.4, 8)])
    assert {reading.label for reading in seen[6:]} == {"neutral"}


def test_a_label_is_entered_after_its_dwell_and_left_for_another() -> None:
    seen = readings([*frames("neutral", 0, 5), *frames("joy", 5, 10)], TrackerOptions(dwell_s=1))
    labels = [reading.label for reading in seen]
    assert labels[0] is None
    assert labels[-1] == "joy"
    assert [a for a, b in zip(labels, [*labels[1:], ""], strict=True) if a != b] == [None, "neutral", "joy"]
    entered = next(reading for reading in seen if reading.label == "neutral")
    assert entered.since_s == entered.clock_s == 1


def test_a_brief_state_has_a_dwell_of_its_own() -> None:
    events = [*frames("neutral", 0, 5), *frames("surprise", 5, 7, p=0.97)]
    brief = TrackerOptions(dwell_of={"surprise": 0.2}, frames=StreamOptions(0.5, 6, 1))
    slow = replace(brief, dwell_of={"surprise": 5.0})
    assert readings(events, brief)[-1].label == "surprise"
    assert readings(events, slow)[-1].label != "surprise"


def test_one_utterance_counts_for_as_long_as_it_lasted() -> None:
    turn = of("anger", 3, modalities=AUDIO_TEXT, start_s=0)
    assert readings([turn])[0].label == "anger"
    assert readings([replace(turn, start_s=2.9)])[0].label is None


def test_between_enter_and_exit_the_label_stays() -> None:
    options = TrackerOptions(min_probability=0.1, max_entropy=1, enter=0.6, exit=0.3)
    seen = readings([*frames("joy", 0, 5), *frames("joy", 5, 20, p=0.4)], options)
    assert seen[-1].label == "joy"
    assert readings(frames("joy", 0, 15, p=0.4), options)[-1].standing == "unsettled"
    assert readings([*frames("joy", 0, 5), *frames("joy", 5, 20, p=0.2)], options)[-1].label is None


def test_without_evidence_nothing_is_known_and_that_is_not_neutral() -> None:
    hold_s = TrackerOptions().frames.hold_s
    seen = readings([*frames("joy", 0, 5), *(Observation(5 + n, 5 + n) for n in range(10))])
    standing = {reading.clock_s: (reading.standing, reading.label) for reading in seen}
    assert standing[5.0 + hold_s - 1] == ("steady", "joy")
    assert standing[14.0] == ("no_evidence", None)
    assert seen[-1].since_s == pytest.approx(5 + hold_s, abs=1)
    assert readings([Observation(0, 0)])[0].standing == "no_evidence"


def test_what_does_not_count_begins_no_state() -> None:
    """One good picture, then poor ones: its candidate isn't confirmed by them."""
    poor = [of("anger", n / 3, quality={"image": 0.0}) for n in range(1, 12)]
    assert {reading.label for reading in readings([of("anger", 0), *poor])} == {None}


def test_a_change_point_is_found_where_it_began() -> None:
    seen = readings([*frames("neutral", 0, 30), *frames("anger", 30, 40)])
    found = [reading.change for reading in seen if reading.change]
    assert [(point.label, point.began_s) for point in found] == [("anger", pytest.approx(30, abs=0.4))]
    assert found[0].found_s < 33


def test_a_trend_is_a_slope() -> None:
    """Of a ramp of 0.01 a second, once the slow average has caught up: 0.6 a minute."""
    options = TrackerOptions(min_probability=0, max_entropy=1, frames=StreamOptions(0.1, 6, 1))
    ramp = [of("joy", n / 3, p=0.1 + n / 300, valence=n / 300) for n in range(240)]
    last = readings(ramp, options)[-1]
    assert last.trend is not None
    assert last.trend.shares["joy"] == pytest.approx(0.6, rel=0.05)
    assert last.trend.valence == pytest.approx(0.6, rel=0.05)
    assert last.trend.shares["anger"] == pytest.approx(-0.1, rel=0.05)


def test_order_between_streams_and_within_one() -> None:
    turn = of("joy", 9.5, modalities=AUDIO_TEXT)
    events = [
        of("anger", 10),
        turn,
        turn,
        replace(turn, end_s=9, start_s=9),
        of("joy", 9.9),
        of("joy", 4, modalities=("text",)),
    ]
    assert [reading.outcome for reading in readings(events)] == ["used", "used", "duplicate", "late", "late", "late"]
    assert [reading.clock_s for reading in readings(events)] == [10] * 6


def test_a_release_with_other_labels_goes_on_by_their_names() -> None:
    """MELD's joy is IEMOCAP's happiness; its fear, disgust and surprise have no name there."""
    there = LABEL_SETS["iemocap6"]
    *_, (state, before) = track(TrackerState(), frames("joy", 0, 5))
    state, reading = observe(state, of("happiness", 5.1, labels=there, digest="two"))
    assert before.label == "joy"
    assert (reading.label, reading.since_s) == ("happiness", before.since_s)
    assert reading.release is not None
    assert reading.release.to_json() == {
        "digest": "two",
        "before": "one",
        "lost": ["surprise", "fear", "disgust"],
        "new": ["excitement", "frustration"],
    }
    assert set(reading.probabilities) == set(there)
    _, quiet = observe(state, of("happiness", 5.5, labels=there, digest="two"))
    assert quiet.release is None


def test_a_state_without_a_name_in_the_new_release_ends() -> None:
    *_, (state, before) = track(TrackerState(), frames("fear", 0, 5, p=1.0))
    _, reading = observe(state, of("anger", 5.1, labels=LABEL_SETS["iemocap4"], digest="two"))
    assert before.label == "fear"
    assert reading.label is None
    assert reading.probabilities["anger"] == pytest.approx(0.8)  # nothing of the old distribution had a place


def test_the_same_labels_in_another_order_change_nothing_but_the_release() -> None:
    *_, (state, _) = track(TrackerState(), frames("joy", 0, 5))
    other = tuple(reversed(MELD))
    after, reading = observe(state, of("joy", 5.1, labels=other, digest="two"))
    same, usual = observe(state, of("joy", 5.1))
    assert reading.label == usual.label
    assert reading.probabilities == pytest.approx(usual.probabilities)
    assert reading.release is not None
    assert (reading.release.lost, reading.release.new) == ((), ())
    assert (after.label, after.since_s) == (same.label, same.since_s)


def test_other_options_than_before_are_said() -> None:
    state, first = observe(TrackerState(), of("joy", 0))
    _, reading = observe(state, of("joy", 1), TrackerOptions(dwell_s=3))
    assert (first.options_changed, reading.options_changed) == (False, True)


def test_a_temperature_makes_probabilities_less_sure() -> None:
    cold, hot = (readings([of("joy", 0, p=0.98)], TrackerOptions(temperature=t))[0] for t in (1, 3))
    assert cold.probabilities["joy"] == pytest.approx(0.98)
    logits = np.log([0.98, *[0.02 / 6] * 6]) / 3
    assert hot.probabilities["joy"] == pytest.approx(float(np.exp(logits[0]) / np.exp(logits).sum()))


def test_answers_of_the_client_are_observations() -> None:
    with EmotionClient("fake:1", transport=FakeTransport()) as client:
        answer = client.predict(text="I am so happy!")
    seen = Observation.of(answer, end_s=2.0)
    assert (seen.start_s, seen.modalities, seen.digest, seen.trained) == (2, ("text",), answer.digest, False)
    assert seen.probabilities == pytest.approx(answer.probabilities)
    for note, quality in ((FaceNote("face", (0, 0, 9, 9), 0.0, 0.7), 0.7), (FaceNote("whole"), 0.0)):
        looked = replace(answer, modalities=("image", "text"), face=note)
        assert Observation.of(looked, end_s=1.0, start_s=0.5).quality == {"image": quality}
    assert Observation.of(looked, 1.0, quality={"image": 0.9}).quality == {"image": 0.9}


@pytest.mark.parametrize(
    "wrong",
    [
        {"end_s": math.nan},
        {"end_s": -1.0},
        {"end_s": 10**400},
        {"end_s": True},
        {"start_s": 2.0},
        {"end_s": 1e9},
        {"modalities": ()},
        {"modalities": ("smell",)},
        {"probabilities": {}},
        {"probabilities": {"joy": 1.0}},
        {"probabilities": {"joy": 0.6, "anger": 0.6}},
        {"probabilities": {"joy": 1.5, "anger": -0.5}},
        {"probabilities": {"joy": math.nan, "anger": 1.0}},
        {"probabilities": {"joy": 0.5, "<b>": 0.5}},
        {"probabilities": {f"label {n}": 1 / 65 for n in range(65)}},
        {"valence": 1.1},
        {"quality": {"image": 2}},
        {"quality": {"smell": 0.2}},
    ],
)
def test_what_can_not_be_an_observation_is_refused(wrong: dict[str, Any]) -> None:
    good = {"start_s": 0.0, "end_s": 1.0, "modalities": ("image",), "probabilities": {"joy": 0.5, "anger": 0.5}}
    Observation(**good)
    with pytest.raises(InvalidEvent, match="got"):
        Observation(**{**good, **wrong})


def test_numbers_of_numpy_are_numbers() -> None:
    seen = Observation(np.float32(1), np.float32(2), ("text",), {"joy": np.float32(0.25), "anger": np.float32(0.75)})
    assert Observation.from_json(seen.to_json()) == seen


@pytest.mark.parametrize(
    "wrong",
    [
        {"exit": 0.9},
        {"enter": 1.1},
        {"dwell_s": -1},
        {"trend_s": math.inf},
        {"streams": {"smell": StreamOptions(1, 1, 1)}},
        {"dwell_of": {"joy": -1}},
        {"modalities": ("smell",)},
        {"required": ("smell",)},
        {"temperature": 0},
    ],
)
def test_options_that_can_not_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got .*; expected"):
        TrackerOptions(**wrong)
    with pytest.raises(ValueError, match="tau_s"):
        StreamOptions(0, 1, 1)
