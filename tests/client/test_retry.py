"""The budget of seconds and retries."""

from __future__ import annotations

import pytest

from cmt_client import DeadlineExceeded, ServerUnavailable
from cmt_client.retry import Budget

GONE = ServerUnavailable("gone")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def longest(_: float, high: float) -> float:
    return high


def test_pauses_double_up_to_a_ceiling() -> None:
    budget = Budget(1_000, 7, Clock(), longest)
    assert [round(budget.pause_s(GONE), 3) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_the_last_error_is_raised_when_retries_are_used_up() -> None:
    budget = Budget(1_000, 1, Clock(), longest)
    budget.pause_s(GONE)
    with pytest.raises(ServerUnavailable) as raised:
        budget.pause_s(GONE)
    assert raised.value is GONE


def test_no_pause_outlasts_the_deadline() -> None:
    clock = Clock()
    budget = Budget(0.25, 9, clock, longest)
    clock.now_s += budget.pause_s(GONE)
    with pytest.raises(ServerUnavailable):
        budget.pause_s(GONE)


def test_remaining_time_runs_out() -> None:
    clock = Clock()
    budget = Budget(2, 0, clock)
    clock.now_s += 1.5
    assert budget.remaining_s() == 0.5
    clock.now_s += 0.5
    with pytest.raises(DeadlineExceeded, match="within 2 s"):
        budget.remaining_s()


def test_any_number_of_retries_gives_a_pause() -> None:
    budget = Budget(1e9, 3_000, Clock())
    assert all(0.05 <= budget.pause_s(GONE) <= 2.0 for _ in range(3_000))
