"""Judging by answers: label flips, distances, latency and errors, each from requests put to both releases in turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cmt_client import EmotionClient, FakeTransport, InferenceFailed, InvalidInput
from cmt_client.operations import Infer, InferAnswer
from cmt_rollout.golden import item_of
from cmt_rollout.options import RolloutOptions
from cmt_rollout.release_checks import Comparison, live_like, slower

OPTIONS = RolloutOptions()


def client(label: str = "joy", error: Exception | None = None) -> EmotionClient:
    fake, healthy = FakeTransport(label=label), FakeTransport(label=label)

    def infer(request: Infer) -> InferAnswer:
        if error is not None:
            raise error
        return healthy.call(request, 1.0)

    fake.answer(Infer, infer)
    return EmotionClient("fake:1", transport=fake, retries=0)


def compared(running: EmotionClient, trial: EmotionClient, count: int = 8) -> Comparison:
    comparison = Comparison()
    for item in live_like(RolloutOptions(samples=count)):
        comparison.ask(running, trial, item)
    return comparison


def test_equal_releases_have_no_faults() -> None:
    comparison = compared(client(), client())
    assert (comparison.flips, comparison.distance, comparison.errors) == (0.0, 0.0, [])
    assert comparison.faults(replace(OPTIONS, max_slowdown=50.0)) == []


def test_flips_and_distance() -> None:
    comparison = compared(client("joy"), client("anger"))
    assert comparison.flips == 1.0
    assert comparison.distance == pytest.approx(0.6 - 0.4 / 6)
    assert comparison.faults(replace(OPTIONS, max_slowdown=50.0)) == [
        "100% of the labels flip; 20% are allowed",
        "probabilities are 0.533 apart; 0.2 is allowed",
    ]


def test_a_slow_release_is_told_from_a_quick_one() -> None:
    assert "it takes 9.00 times as long, of 8 requests" in Comparison(ratios=[9.0] * 8).faults(OPTIONS)[0]
    assert Comparison(ratios=[0.1] * 8).faults(OPTIONS) == []


def test_errors_count_against_the_release_on_trial_alone() -> None:
    comparison = compared(client(), client(error=InferenceFailed("NaN")))
    assert (comparison.asked, len(comparison.errors)) == (8, 8)
    assert comparison.faults(OPTIONS)[0].startswith("8 of 8 requests failed: NaN")
    refused = InvalidInput("text", "too_long", "got 129 tokens")
    assert compared(client(error=refused), client(error=InferenceFailed("NaN"))).errors == []
    assert compared(client(), client(error=refused)).errors  # what the running one takes must be taken


def test_a_few_slow_requests_are_chance() -> None:
    assert slower([1.0] * 4 + [9.0] * 3, 2.0) is None
    assert slower([9.0] * 6, 2.0) is None  # too few to say anything
    assert slower([9.0] * 7, 2.0) == (
        "it takes 9.00 times as long, of 7 requests in the median and 9.00 at the least; 2 is allowed"
    )


def test_what_a_broken_release_answers_is_no_measure() -> None:
    broken = client(error=InferenceFailed("NaN"))
    comparison = Comparison(broken=True)
    for item in live_like(RolloutOptions(samples=7)):
        comparison.ask(broken, client(), item)
    assert (comparison.faults(OPTIONS), comparison.asked, comparison.pairs) == ([], 7, [])
    comparison.ask(broken, client(error=InferenceFailed("mine too")), live_like(OPTIONS)[0])
    assert comparison.faults(OPTIONS)[0].startswith("1 of 8 requests failed: mine too")


def test_requests_cover_every_subset_and_are_the_same_each_time() -> None:
    items = live_like(RolloutOptions(samples=7))
    assert {tuple(item) for item in items} == {
        ("image", "audio", "text"), ("image", "audio"), ("image", "text"), ("audio", "text"),
        ("image",), ("audio",), ("text",),
    }  # fmt: skip
    assert items == live_like(RolloutOptions(samples=7))


def test_requests_can_come_from_a_folder_of_the_users(tmp_path: Path) -> None:
    for name, data in {"a.jpg": b"picture", "b.wav": b"sound", "c.txt": b"words"}.items():
        (tmp_path / name).write_bytes(data)
    items = live_like(RolloutOptions(samples=7, requests=tmp_path))
    whole = item_of({"image": b"picture", "audio": b"sound", "text": b"words"})
    assert whole in items
    (tmp_path / "b.wav").unlink()
    with pytest.raises(ValueError, match="has no audio files; expected some of each modality"):
        live_like(RolloutOptions(requests=tmp_path))
