"""A smoke of the whole harness on the real servers: small models, few requests. Figures come from `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cmt_export.checkpoint import checkpoint_from_preset, save_checkpoint
from cmt_export.engine import Precision
from cmt_export.release import Release
from cmt_perf.bench.measure import one_round
from cmt_perf.bench.run import BASELINE, OURS, BenchOptions, bench, summary_of
from cmt_perf.bench.scenarios import Scenario, Size
from cmt_perf.bench.systems import System, peer
from cmt_server.server import TritonServer

SMALL = Size(audio_s=0.9, text_tokens=12, image_px=96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "conventional"
    save_checkpoint(checkpoint_from_preset("mini", "meld", model="conventional"), folder)
    return folder


def test_baseline_and_pipeline_take_turns_and_every_part_is_told(
    release_of: Callable[[Precision], Release], checkpoint: Path
) -> None:
    told: list[float] = []
    options = BenchOptions(release_of("fp32"), checkpoint, rounds=2, requests=4, size=SMALL, growth=False)
    result = bench(options, lambda _, done: told.append(done))
    summary = summary_of(result)
    assert told == sorted(told)
    for system in (OURS, BASELINE):
        figures = result["single_stream"][system]
        assert figures["requests"] == 8
        assert figures["errors"] == 0
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert figures["cpu_s_per_request"] > 0
        assert figures["peak_mb"] > 100
    low, high = summary["ratio_p50_interval"]
    assert low <= summary["ratio_p50"] <= high
    assert summary["ratio_p50"] == pytest.approx(summary["baseline_p50_ms"] / summary["p50_ms"], rel=0.01)
    stages = result["attribution"]["stages"]
    assert set(stages) == {"preprocess", "encode_image", "encode_audio", "encode_text", "fuse"}
    assert 0 < summary["overhead_ms"] < summary["p50_ms"]
    assert all(rate > 1 for rate in result["peaks"]["gflops"].values())
    assert summary["conditions"]["size"]["audio_s"] == SMALL.audio_s


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("closed", "closed", 3, requests=6, size=SMALL),
        Scenario("batch", "batch", 3, requests=6, size=SMALL),
        Scenario("open", "open", rate=15.0, requests=6, size=SMALL),
    ],
    ids=lambda scenario: scenario.name,
)
def test_every_shape_of_traffic_is_answered(server: TritonServer, scenario: Scenario) -> None:
    found = one_round(System("here", "emotion", server.grpc_url, server.pid or 0), scenario, seed=0)
    assert len(found.latencies_ms) == 6
    assert found.errors == 0, found.first_error
    assert min(found.latencies_ms) > 1


def test_failures_are_counted_not_hidden(server: TritonServer) -> None:
    too_long = Scenario("too long", "closed", requests=4, size=Size(audio_s=20.0, text_tokens=12, image_px=96))
    found = one_round(System("here", "emotion", server.grpc_url, server.pid or 0), too_long, seed=0)
    assert found.errors == 4
    assert "audio" in found.first_error


def test_late_requests_count_from_when_they_were_due(server: TritonServer) -> None:
    """More comes than can be answered: a closed loop hides it, an open loop doesn't."""
    here = System("here", "emotion", server.grpc_url, server.pid or 0)
    closed = one_round(here, Scenario("closed", "closed", requests=20, size=SMALL), seed=0)
    flood = one_round(here, Scenario("open", "open", rate=300.0, requests=60, size=SMALL), seed=0)
    assert max(flood.latencies_ms) > 3 * max(closed.latencies_ms)


def test_a_peer_that_is_not_installed_says_how_to_get_it(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"cmt-triton\[peers\]"), peer("bentoml", checkpoint, tmp_path):
        pass


def test_peers_need_their_checkpoint(release_of: Callable[[Precision], Release], checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="without the checkpoint"):
        BenchOptions(release_of("fp32"), checkpoint, peers=("fastapi",))
