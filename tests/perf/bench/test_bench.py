"""A smoke of the whole harness on the real servers: small models, few requests. Figures come from `make bench`."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from cmt_cli.export import sample
from cmt_cli.main import app
from cmt_client import Item
from cmt_export.checkpoint import checkpoint_from_preset, save_checkpoint
from cmt_perf.bench import analyzer
from cmt_perf.bench.fetch_analyzer import fetch
from cmt_perf.bench.measure import Measured, one_round
from cmt_perf.bench.run import BASELINE, OURS, BenchOptions, bench, saturation_of, summary_of
from cmt_perf.bench.scenarios import Scenario, Size
from cmt_perf.bench.systems import SERVERS, System, parts_of, peer
from cmt_perf.traffic import TrafficPlan, _Asker, traffic_items
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.pipelines import pipeline_name
from cmt_release.release import Release
from cmt_server.server import TritonServer

SMALL = Size(audio_s=0.9, text_tokens=12, image_px=96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "conventional"
    save_checkpoint(checkpoint_from_preset("mini", "meld", model="conventional"), folder)
    return folder


@pytest.mark.slow
def test_baseline_and_pipeline_take_turns_and_every_part_is_told(tiny: Release, checkpoint: Path) -> None:
    told: list[float] = []
    options = BenchOptions(tiny, checkpoint, rounds=2, requests=4, size=SMALL, growth=False)
    kept: list[set[str]] = []
    result = bench(options, lambda _, done: told.append(done), lambda part: kept.append(set(part)))
    assert {"single_stream", "conditions"} <= kept[0] < kept[-1] < set(result)
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
    rates = result["peaks"]["gflops"].values()
    assert min(rates) > 0
    assert max(rates) > 1
    assert 0 < summary["gflop"] < 10
    assert summary["conditions"]["size"]["audio_s"] == SMALL.audio_s


def test_saturation_is_what_all_were_let_in_at() -> None:
    """Refusals come at once and ask again: of sixteen loops nearly all that is counted were refused."""

    def row(system: str, scenario: str, throughput: float, errors: int = 0) -> dict[str, Any]:
        return {"system": system, "scenario": scenario, "throughput": throughput, "errors": errors}

    loops = [row(OURS, "concurrency 1", 2.1), row(OURS, "concurrency 8", 2.5), row(OURS, "concurrency 16", 0.0, 16)]
    others = [row(OURS, "batch 8", 4.0), row(BASELINE, "concurrency 8", 3.0)]
    assert saturation_of([*loops, *others], OURS) == 2.5
    assert saturation_of([*loops, *others], BASELINE) == 3.0
    assert saturation_of([row(OURS, "concurrency 16", 9.0, 1)], OURS) == 0


@pytest.mark.long
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


@pytest.mark.long
def test_failures_are_counted_not_hidden(server: TritonServer) -> None:
    too_long = Scenario("too long", "closed", requests=4, size=Size(audio_s=20.0, text_tokens=12, image_px=96))
    found = one_round(System("here", "emotion", server.grpc_url, server.pid or 0), too_long, seed=0)
    assert found.errors == 4
    assert "audio" in found.first_error


def test_late_requests_count_from_when_they_were_due() -> None:
    """However long a server keeps the open loop from sending: those moments are drawn before."""
    log, seconds = io.StringIO(), 1 / 500
    asker = _Asker(TrafficPlan("", "", open_rate=1 / seconds, items=1), log)

    class Client:
        async def ask(self, item: Item) -> tuple[int, tuple[float, ...]]:
            time.sleep(10 * seconds)  # nobody else gets a turn
            if asker.sent >= 8:
                asker.stopped.set()
            return 1, (1.0,)

    asyncio.run(asker._open({"grpc": Client(), "http": Client()}))
    due = sorted(json.loads(line)["due_s"] for line in log.getvalue().splitlines())
    drawn = np.random.default_rng(asker.plan.seed + 1).exponential(seconds, len(due))
    assert len(due) >= 8
    np.testing.assert_allclose(np.diff(due), drawn[1:], atol=1e-8)


@pytest.fixture(scope="module")
def perf_analyzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one, out of its wheel."""
    return fetch(tmp_path_factory.mktemp("perf_analyzer"))


@pytest.mark.slow
def test_perf_analyzer_sees_the_same_server(server: TritonServer, perf_analyzer: Path) -> None:
    scenario = Scenario("closed", "closed", requests=20, size=SMALL)
    here = System("here", "emotion", server.grpc_url, server.pid or 0)
    own = Measured("here", scenario, [one_round(here, scenario, seed=0)]).figures()
    assert own["throughput"] * own["mean_ms"] == pytest.approx(1e3, rel=0.1)  # one request at a time
    items = traffic_items(scenario.plan("emotion", server.grpc_url, seed=0))
    theirs = analyzer.closed_loop(server.grpc_url, items, 1, 20, folder=perf_analyzer.parent)
    assert 0.25 < theirs["p50_ms"] / own["p50_ms"] < 4  # other work may come between; `make bench` says how near
    assert theirs["p50_ms"] <= theirs["p95_ms"] <= theirs["p99_ms"]
    assert theirs["throughput"] > 0


@pytest.mark.slow
def test_perf_analyzer_sends_the_files_of_perf_input(server: TritonServer, perf_analyzer: Path, tmp_path: Path) -> None:
    """Bytes that came otherwise than they lay there would be refused, or answered as another text."""
    files = ["--image", str(sample("image")), "--audio", str(sample("audio"))]
    written = CliRunner().invoke(app, ["perf-input", str(tmp_path / "in.json"), *files, "--text", "a", "--text", "b"])
    assert written.exit_code == 0, written.output
    command = written.output.splitlines()[-1].replace("127.0.0.1:8001", server.grpc_url.removeprefix("grpc://"))
    _, environment = analyzer.find_analyzer(perf_analyzer.parent)
    ran = subprocess.run(
        [str(perf_analyzer), *shlex.split(command)[1:], "--request-count", "4"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "infer/sec" in ran.stdout


def test_without_perf_analyzer_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(analyzer.AnalyzerMissing, match="make perf-analyzer"):
        analyzer.find_analyzer(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SERVERS, "fastapi:compiled", "pytriton:onnxruntime", "bentoml:openvino"])
def test_a_peer_serves_the_same_checkpoint(name: str, checkpoint: Path, tmp_path: Path) -> None:
    server, _ = parts_of(name)
    if importlib.util.find_spec(server) is None:
        pytest.skip(f"{server} isn't installed; `pip install 'cmt-triton[peers]'`")
    with peer(name, checkpoint, tmp_path) as system:
        found = one_round(system, Scenario("closed", "closed", requests=4, size=SMALL), seed=0)
        family = [system.pid, *(child.pid for child in psutil.Process(system.pid).children(recursive=True))]
    assert found.errors == 0, found.first_error
    assert len(found.latencies_ms) == 4
    assert found.cpu_s > 0.01  # its workers' too, whatever sessions they made
    assert not [pid for pid in family if psutil.pid_exists(pid)]


@pytest.mark.slow
def test_locust_asks_about_every_subset(server: TritonServer, tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "perf/cmt_perf/locustfile.py"
    command = [sys.executable, "-m", "locust", "-f", str(file), "--host", server.grpc_url, "--headless"]
    command += ["--csv", str(tmp_path / "locust"), "--only-summary"]
    environment = {**os.environ, "CMT_RAMP": "2,4,1", "CMT_STEP_S": "3"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    with (tmp_path / "locust_stats.csv").open() as file_:
        rows = {row["Name"]: row for row in csv.DictReader(file_)}
    assert set(rows) >= {pipeline_name(subset) for subset in SUBSETS}
    assert int(rows["Aggregated"]["Failure Count"]) == 0
    assert int(rows["Aggregated"]["Request Count"]) > 10


def test_a_peer_that_is_not_installed_says_how_to_get_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"cmt-triton\[peers\]"), peer("bentoml", checkpoint, tmp_path):
        pass


def test_peers_need_their_checkpoint(tiny: Release, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="without the checkpoint"):
        BenchOptions(tiny, checkpoint, peers=("fastapi",))
    with pytest.raises(ValueError, match="peer: got 'flask'"):
        BenchOptions(tiny, checkpoint, checkpoint=checkpoint, peers=("flask",))
