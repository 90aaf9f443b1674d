"""Ratios of systems that took turns."""

from __future__ import annotations

import numpy as np
import pytest

from cmt_perf.bench.measure import Measured, Round
from cmt_perf.bench.ratio import ratio_of
from cmt_perf.bench.scenarios import SINGLE_STREAM


def measured(system: str, rounds: list[list[float]]) -> Measured:
    return Measured(system, SINGLE_STREAM, [Round(tuple(r), sum(r) / 1e3, 0, 0.1, 100.0) for r in rounds])


def noisy(mean_ms: float, slow: list[float], seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [list(rng.normal(mean_ms * factor, mean_ms / 20, 30)) for factor in slow]


@pytest.mark.long
def test_the_interval_holds_the_truth_however_slow_the_machine_is_for_a_while() -> None:
    slow = [1.0, 1.0, 1.6, 1.0, 1.2, 1.0]
    found = ratio_of(measured("a", noisy(500, slow, 0)), measured("b", noisy(100, slow, 1)))
    assert found.low < 5 < found.high
    assert found.low <= found.ratio <= found.high
    assert found.high - found.low < 1


@pytest.mark.long
def test_equal_systems_have_a_ratio_of_about_one() -> None:
    found = ratio_of(measured("a", noisy(100, [1.0] * 6, 0)), measured("b", noisy(100, [1.0] * 6, 1)))
    assert found.low < 1 < found.high


@pytest.mark.long
def test_the_seed_decides_the_interval() -> None:
    pair = measured("a", noisy(500, [1.0] * 4, 0)), measured("b", noisy(100, [1.0] * 4, 1))
    assert ratio_of(*pair, seed=3) == ratio_of(*pair, seed=3)
    assert ratio_of(*pair, seed=3) != ratio_of(*pair, seed=4)


def test_rounds_without_an_answer_are_left_out_and_none_at_all_is_refused() -> None:
    found = ratio_of(measured("a", [[200.0] * 9, []]), measured("b", [[100.0] * 9, [1.0] * 9]))
    assert found.ratio == pytest.approx(2)
    with pytest.raises(ValueError, match="no round that both answered"):
        ratio_of(measured("a", [[]]), measured("b", [[1.0]]))


def test_figures_count_errors_and_throughput() -> None:
    figures = measured("a", [[100.0] * 11, [300.0] * 11]).figures()
    assert figures["requests"] == 22
    assert figures["p50_ms"] == 200
    assert figures["throughput"] == pytest.approx(22 / 4.4, abs=1e-3)
    assert figures["errors"] == 0
