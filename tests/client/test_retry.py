"""The budget of seconds and retries."""

from __future__ import annotations

import pytest

from cmt_client import DeadlineExceeded, EmotionClient, FakeTransport, Overloaded, ServerUnavailable
from cmt_client.retry import MOST_RETRIES, RETRY_SHARE, Allowance, Budget

GONE = ServerUnavailable("gone")
REFUSED = Overloaded("too much", retry_after_s=0.5)


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


def test_a_refusal_says_when_to_come_back() -> None:
    budget = Budget(1_000, 3, Clock(), longest)
    assert [round(budget.pause_s(REFUSED), 3) for _ in range(3)] == [0.6, 0.7, 0.9]


def test_a_refusal_is_not_waited_out_beyond_the_deadline() -> None:
    with pytest.raises(Overloaded):
        Budget(0.55, 9, Clock(), longest).pause_s(REFUSED)


def test_a_storm_is_not_fed_by_retries() -> None:
    """However many callers are refused and would try again: a tenth of them may, after the first few."""
    allowance = Allowance()
    repeated = 0
    for _ in range(1_000):
        try:
            Budget(1_000, 5, Clock(), longest, allowance).pause_s(REFUSED)
            repeated += 1
        except Overloaded:
            pass
    assert MOST_RETRIES <= repeated <= MOST_RETRIES + 1_000 * RETRY_SHARE


def test_a_server_that_is_gone_is_tried_again_without_allowance() -> None:
    """Its requests are lost otherwise, and they don't keep others from being answered."""
    allowance = Allowance()
    while allowance.spend():
        pass
    assert Budget(1_000, 1, Clock(), longest, allowance).pause_s(GONE) == 0.1


def test_callers_of_a_client_share_its_allowance() -> None:
    fake = FakeTransport()
    with EmotionClient("fake:1", transport=fake, retries=1) as client:
        while client._allowance.spend():
            pass
        fake.fail(Overloaded("too much", retry_after_s=0.0))
        with pytest.raises(Overloaded):
            client.predict(text="Who is there?")
        assert client.predict(text="Who is there?").label


def test_refused_requests_are_not_tried_again_where_the_caller_will() -> None:
    fake = FakeTransport()
    fake.fail(Overloaded("full", None, 0.01, "queue"))
    with EmotionClient("fake:1", transport=fake, retry_refused=False) as client:
        with pytest.raises(Overloaded):
            client.predict(text="hello")
        fake.fail(ServerUnavailable("gone"))
        assert client.predict(text="hello").label, "one that went away is"
