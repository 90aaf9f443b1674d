"""The judge of traffic must be able to say no: to mixed answers, wrong names, errors and silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmt_perf.traffic import Asked, Outcome, TrafficPlan, traffic_items
from cmt_perf.upgrade_rig import Truth, separation, verdict_on
from cmt_pipeline.modality import SUBSETS

TRUTH: Truth = {1: [(0.9, 0.1), (0.5, 0.5)], 2: [(0.7, 0.3), (0.2, 0.8)]}
GOOD = Asked("closed", "grpc", 0, 1.0, 1.1, release=1, probabilities=(0.9, 0.1))


def judged(*asked: Asked, sent: int | None = None) -> tuple[int, int, int, int, int]:
    verdict = verdict_on(Outcome(asked, len(asked) if sent is None else sent), TRUTH, separation(TRUTH) / 3)
    assert verdict.clean == (verdict.answers == len(asked) and not (verdict.mixed + verdict.mislabelled + verdict.lost))
    return verdict.answers, verdict.errors, verdict.lost, verdict.mixed, verdict.mislabelled


def test_separation_is_the_least_distance_of_two_releases() -> None:
    assert separation(TRUTH) == pytest.approx(0.2)
    assert separation({1: TRUTH[1]}) == float("inf")


def test_sound_answers() -> None:
    other = replace(GOOD, item=1, release=2, probabilities=(0.21, 0.79))
    assert judged(GOOD, other) == (2, 0, 0, 0, 0)


def test_an_answer_that_no_release_gives_was_made_by_two() -> None:
    assert judged(replace(GOOD, probabilities=(0.8, 0.2))) == (1, 0, 0, 1, 0)
    assert judged(replace(GOOD, probabilities=(0.9, 0.05, 0.05))) == (1, 0, 0, 1, 0)


def test_an_answer_under_the_wrong_name() -> None:
    assert judged(replace(GOOD, release=2)) == (1, 0, 0, 0, 1)


def test_errors_and_silence() -> None:
    failed = replace(GOOD, release=0, probabilities=(), error="ServerUnavailable: gone")
    assert judged(GOOD, failed, sent=5) == (1, 1, 3, 0, 0)


def test_latency_counts_from_the_moment_that_was_meant() -> None:
    assert GOOD.latency_ms == pytest.approx(100.0)


def test_requests_are_seeded_and_cover_every_subset() -> None:
    plan = TrafficPlan("", "", items=14)
    items = traffic_items(plan)
    assert items == traffic_items(plan)
    assert items != traffic_items(replace(plan, seed=1))
    assert {tuple(item) for item in items} == set(SUBSETS)
    assert len({str(item) for item in items}) == 14
    assert np.all([len(item) > 0 for item in items])
