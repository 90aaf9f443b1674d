"""The capacity model against queues whose answers are known, and against its own promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmt_perf.capacity import (
    Overloaded,
    Point,
    ServiceCurve,
    latencies_at,
    latencies_of_runs,
    most_within,
    percentiles,
    pooled,
)
from cmt_perf.capacity_trial import LOADS, RESULT, table

ROOT = Path(__file__).parents[2]

ALONE_MS = 100.0


def curve(speed_of: dict[int, float], work: tuple[float, ...] = (1.0,)) -> ServiceCurve:
    points = tuple(Point(n, speed, n / speed * 1e3, n / speed * 1e3, n / speed * 1e3) for n, speed in speed_of.items())
    return ServiceCurve(points, work, 40_000.0, 2, {})


ONE_AT_A_TIME = curve({1: 10.0, 16: 10.0})
WITHOUT_LIMIT = curve({1: 10.0, 64: 640.0})
BATCHING = curve({1: 10.0, 2: 16.0, 4: 22.0, 8: 25.0, 16: 25.0}, (0.8, 0.9, 1.0, 1.1, 1.2))


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("work", [(1.0,), tuple(np.random.default_rng(0).exponential(1, 2_000))])
def test_processor_sharing_has_its_known_mean(load: float, work: tuple[float, ...]) -> None:
    """M/G/1-PS: service time over one minus load, whatever the distribution (Kleinrock 1976, Queueing Systems II)."""
    found = latencies_at(curve({1: 10.0, 16: 10.0}, work), load * 10, requests=60_000)
    assert found.mean() == pytest.approx(ALONE_MS / (1 - load), rel=0.08)


def test_without_limits_nobody_waits() -> None:
    assert latencies_at(WITHOUT_LIMIT, 20.0) == pytest.approx(ALONE_MS, rel=1e-6)


def test_latency_grows_with_load_and_never_lies_below_the_work() -> None:
    tails = [percentiles(latencies_at(BATCHING, rate))["p95_ms"] for rate in (2.0, 8.0, 15.0, 20.0)]
    assert tails == sorted(tails)
    assert latencies_at(BATCHING, 8.0).min() >= ALONE_MS * 0.8 - 1e-6


def test_equal_seeds_give_equal_answers() -> None:
    first, again, other = (latencies_at(BATCHING, 8.0, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("rate", [0.0, -1.0, 25.0, 1e9])
def test_what_cant_be_answered_is_refused(rate: float) -> None:
    with pytest.raises(Overloaded, match=r"expected above 0 and below 25/s"):
        latencies_at(BATCHING, rate)


def test_the_most_within_an_slo_is_just_within_it() -> None:
    rate = most_within(BATCHING, 200.0, 0.95)
    assert 0 < rate < 0.8 * BATCHING.saturation
    assert percentiles(latencies_at(BATCHING, rate))["p95_ms"] <= 200.0
    assert percentiles(latencies_at(BATCHING, rate * 1.05))["p95_ms"] > 200.0


def test_the_model_isnt_asked_beyond_what_was_checked() -> None:
    assert most_within(BATCHING, 1e6, 0.95) == pytest.approx(0.8 * BATCHING.saturation)


def test_an_slo_below_a_single_requests_time_is_out_of_reach() -> None:
    assert most_within(BATCHING, 90.0, 0.95) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"points": ()},
        {"points": BATCHING.points[1:]},
        {"points": BATCHING.points[::-1]},
        {"work": ()},
        {"work": (0.0,)},
    ],
)
def test_a_curve_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(BATCHING, **change)  # type: ignore[arg-type]


def test_a_curve_comes_back_from_its_file() -> None:
    told = replace(BATCHING, conditions={"cpu": "some"})
    assert ServiceCurve.from_json(told.to_json(), "curve.json") == told
    with pytest.raises(ValueError, match=r"curve\.json"):
        ServiceCurve.from_json('{"points": "none"}', "curve.json")


def test_short_runs_start_empty_and_may_go_beyond_saturation() -> None:
    settled = latencies_at(ONE_AT_A_TIME, 9.0)
    short = latencies_of_runs(ONE_AT_A_TIME, 9.0, requests=20, skipped=2, runs=200)
    assert len(short) == 20 * 200
    assert short.mean() < 0.8 * settled.mean()
    over = latencies_of_runs(ONE_AT_A_TIME, 15.0, requests=300, skipped=0, runs=5)
    assert over.max() > 50 * ALONE_MS
    long = latencies_of_runs(ONE_AT_A_TIME, 9.0, requests=20_000, skipped=1_000, runs=2)
    assert long.mean() == pytest.approx(settled.mean(), rel=0.2)


def test_curves_of_several_rounds_are_averaged() -> None:
    slower = curve({point.concurrency: point.throughput / 2 for point in BATCHING.points}, (1.5,))
    both = pooled([BATCHING, slower])
    assert [point.concurrency for point in both.points] == [point.concurrency for point in BATCHING.points]
    assert both.saturation == pytest.approx(0.75 * BATCHING.saturation)
    assert both.work == (*BATCHING.work, 1.5)


def test_the_docs_show_how_near_predictions_came() -> None:
    result = json.loads((ROOT / RESULT).read_text())
    assert [row["load"] for row in result["rows"]] == list(LOADS)
    assert result["worst_p95_off"] == max(abs(row["off_p95"]) for row in result["rows"])
    page = (ROOT / "docs" / "performance.md").read_text()
    assert table(result) in page
    assert f"p95 within {result['worst_p95_off']:.0%}".replace("%", " %") in " ".join(page.split())
