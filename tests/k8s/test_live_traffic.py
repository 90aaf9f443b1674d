"""Live requests: faults told from refusals, and a rise told from chance."""

from __future__ import annotations

import pytest

from cmt_rollout.live_traffic import Count, Counters, Traffic, rise
from cmt_rollout.refusals import parsed
from cmt_rollout.significance import at_least, fisher, median_at_least, wilson

METRICS = """
# TYPE cmt_refusals_total counter
cmt_refusals_total{code="not_decodable",field="audio",pipeline="emotion_audio",release="2"} 7
cmt_refusals_total{code="not_decodable",field="audio",pipeline="emotion",release="2"} 2
cmt_refusals_total{code="too_large",field="image",pipeline="emotion",release="1"} 30
nv_inference_request_success{model="emotion",version="1"} 5
"""


def counters(
    live: Count, on_trial: Count | None = None, entered: tuple[int, int] = (0, 0), refused: bool = True
) -> Counters:
    models = {("a", "emotion", 1): live, ("a", "fuse", 2): Count(9, 9)}
    models |= {("a", "candidate_emotion", 1): on_trial} if on_trial else {}
    models |= {("a", "preprocess", 1): Count(entered[0]), ("a", "preprocess", 2): Count(entered[1])}
    return Counters(models, parsed("a", METRICS) if refused else None)


@pytest.mark.parametrize("times", [1, 2])
def test_refusals_arent_faults(times: int) -> None:
    """However often a Triton counts one failed request of an ensemble."""
    window = counters(Count(470, 33 * times, 470_000_000), Count(80, 10 * times), (504, 91))
    live, on_trial = window.traffic(1, False), window.traffic(2, True)
    assert (live.answered, live.faults, live.asked, live.mean_ms) == (470, 3, 473, 1.0)
    assert (on_trial.answered, on_trial.faults, on_trial.refused) == (80, 1, {"audio.not_decodable": 9})


def test_where_the_metrics_cant_be_read_refusals_stay_among_the_failures() -> None:
    live = counters(Count(470, 66), entered=(503, 0), refused=False).traffic(1, False)
    assert (live.faults, live.refused) == (33, None)
    assert live.told().startswith("33 of 503 failed or were refused (6.6 %")


def test_counts_since_a_moment_start_again_with_a_model_that_was_loaded_anew() -> None:
    before, now = counters(Count(100, 5), entered=(0, 7)), counters(Count(120, 6), entered=(0, 28))
    assert now.since(before).traffic(2, False) == Traffic(20, 1)
    assert counters(Count(7, 1), entered=(0, 5)).since(before).traffic(2, False) == Traffic(7, 0)


@pytest.mark.parametrize(
    ("now", "before", "veto"),
    [
        (Traffic(100, 0), Traffic(100, 0), False),
        (Traffic(0, 0), Traffic(100, 0), False),
        (Traffic(97, 3), Traffic(970, 30), False),  # no more than before
        (Traffic(98, 2), Traffic(100, 0), False),  # chance
        (Traffic(0, 5), Traffic(1000, 0), True),  # few, but all
        (Traffic(10, 90), Traffic(), True),  # nothing to compare with
        (Traffic(60, 1), Traffic(), False),
        (Traffic(900, 100), Traffic(990, 10), True),
    ],
)
def test_a_rise_of_faults(now: Traffic, before: Traffic, veto: bool) -> None:
    assert (rise(now, before, 0.0) is not None) == veto


def test_a_rise_says_sample_rate_and_interval() -> None:
    said = rise(Traffic(900, 100, {"audio.empty": 3}, 5.0), Traffic(990, 10), 0.0)
    assert said is not None
    assert said.startswith(
        "of live requests 100 of 1000 failed (10.0 %, 95 %: 8.3 to 12.0), 3 refused (audio.empty 3), mean 5 ms; "
        "before: 10 of 1000 failed (1.0 %, 95 %: 0.5 to 1.8)"
    )
    assert rise(Traffic(900, 100), Traffic(990, 10), 0.1) is None  # allowed


def test_the_tests_are_those_of_the_textbooks() -> None:
    """Against scipy, which is no dependency of an upgrade."""
    stats = pytest.importorskip("scipy.stats")
    for hits, of, hits_before, of_before in ((3, 20, 0, 1000), (5, 50, 30, 1000), (0, 5, 3, 9), (9, 9, 0, 9)):
        table = [[hits, of - hits], [hits_before, of_before - hits_before]]
        assert fisher(hits, of, hits_before, of_before) == pytest.approx(stats.fisher_exact(table, "greater")[1])
        assert at_least(hits, of, 0.2) == pytest.approx(stats.binom.sf(hits - 1, of, 0.2))
        interval = stats.binomtest(hits, of).proportion_ci(method="wilson")
        assert wilson(hits, of) == pytest.approx((interval.low, interval.high), abs=1e-4)


def test_the_median_is_at_least_what_chance_allows() -> None:
    assert median_at_least([3.0] * 7, 0.01) == 3.0
    assert median_at_least([3.0] * 6, 0.01) == 0.0
    assert median_at_least([1.0, 2.0, 3.0] * 10, 0.01) == 1.0
    assert median_at_least([], 0.01) == 0.0
