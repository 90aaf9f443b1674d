"""Alerts fire from the metrics of a real server and of a real gateway, fed into promtool minute by minute."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput

import gateways
from cmt_client import EmotionClient, InferenceFailed, InvalidInput, ServerUnavailable
from cmt_pipeline.stages import READY
from cmt_release.release import Release
from cmt_rollout.server_target import ServerTarget
from cmt_server.repository import Repository
from cmt_server.server import TritonServer
from cmt_server.supervise import stage_processes
from monitoring import groups
from serving import server_on

PROMTOOL = shutil.which("promtool")
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(PROMTOOL is None, reason="promtool isn't installed: Debian's package prometheus"),
]

#: What Prometheus adds of a pod.
POD = 'namespace="cmt",pod="a",cmt_track="stable"'
NOBODY = "grpc://127.0.0.1:9"  # the discard port: nobody listens
HOURS = 2
BURST = 40
BURST_TIMEOUT_S = 60.0

FIRING = 'group by (alertname) (ALERTS{alertstate="firing"})'
GAUGES = ("nv_inference_pending_request_count", "cmt_release_loaded", "up", "cmt_gateway_in_flight")

#: A line of the metrics -> its value.
Scrape = dict[str, float]


@pytest.fixture(scope="module")
def running(tinies: tuple[Release, Release], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of release 1 that has release 2 on trial."""
    with server_on(tinies[0], tmp_path_factory.mktemp("alerts")) as server:
        target = ServerTarget(server.grpc_url, Repository(server.options.repository), server.options.control_token)
        target.load(tinies[1])
        target.close()
        yield server


def scraped(server: TritonServer) -> Scrape:
    return scraped_of(f"http://127.0.0.1:{server.metrics_port}")


def scraped_of(address: str) -> Scrape:
    """With what Prometheus adds: that there is a gateway."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as response:
        lines = [*response.read().decode().splitlines(), 'up{container="gateway"} 1']
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}


def firing(before: Scrape, after: Scrape, folder: Path) -> set[str]:
    """The alerts that fire when each minute counts what came between two scrapes; gauges stay as they were last."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(groups()))
    test = {
        "interval": "1m",
        "input_series": [_series(line, before.get(line, 0.0), value) for line, value in after.items()],
        "promql_expr_test": [{"expr": FIRING, "eval_time": f"{HOURS * 60 - 5}m"}],  # expects none
    }
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    tested = subprocess.run(
        [str(PROMTOOL), "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    told = tested.stdout + tested.stderr
    found = set(re.findall(r'alertname=\\?"(\w+)', told.partition("got:")[2]))
    assert bool(found) == (tested.returncode != 0), told
    return found


def _series(line: str, before: float, after: float) -> dict[str, str]:
    name, _, labels = line.rstrip("}").partition("{")
    step = 0.0 if name in GAUGES else after - before
    return {
        "series": f"{name}{{{','.join(part for part in (labels, POD) if part)}}}",
        "values": f"{after:.0f}{step:+.0f}x{HOURS * 60}",
    }


def between(server: TritonServer, traffic: Callable[[EmotionClient], None]) -> tuple[Scrape, Scrape]:
    before = scraped(server)
    with EmotionClient(server.grpc_url, retries=0) as client:
        traffic(client)
    return before, scraped(server)


def test_sound_traffic_fires_nothing(running: TritonServer, tmp_path: Path) -> None:
    def ask(client: EmotionClient) -> None:
        for _ in range(20):
            client.predict(text="Hello?")

    assert firing(*between(running, ask), tmp_path) == set()


def test_refusals_are_told_from_faults(running: TritonServer, tmp_path: Path) -> None:
    def ask(client: EmotionClient) -> None:
        for _ in range(4):
            client.predict(text="Hello?")
            with pytest.raises(InvalidInput):
                client.predict(image=b"no image")

    before, after = between(running, ask)
    line = 'cmt_refusals_total{code="not_decodable",field="image",pipeline="emotion_image",release="1"}'
    assert after[line] - before.get(line, 0) == 4
    assert firing(before, after, tmp_path) == {"CmtRefusals"}


def test_two_releases_that_answer_side_by_side(running: TritonServer, tmp_path: Path) -> None:
    def ask(client: EmotionClient) -> None:
        with EmotionClient(running.grpc_url, canary="only") as trial:
            for _ in range(5):
                assert client.predict(text="Hello?").release != trial.predict(text="Hello?").release

    before, after = between(running, ask)
    for release in (1, 2):
        line = f'cmt_accepted_total{{pipeline="emotion_text",release="{release}"}}'
        assert after[line] - before.get(line, 0) == 5
    assert firing(before, after, tmp_path) == {"CmtReleaseSkew"}


def test_a_queue(running: TritonServer, tmp_path: Path) -> None:
    """A stage stands still while many requests come, for longer than one should wait. They come to the stage itself:
    the gate before it lets no such queue build up."""
    process = process_of(running, "encode_text", 1)
    before = scraped(running)
    os.kill(process, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(BURST) as pool, contextlib.closing(_plain(running)) as client:
            asked = [pool.submit(client.infer, "encode_text", _tokens(), model_version="1") for _ in range(BURST)]
            deadline = time.monotonic() + BURST_TIMEOUT_S
            while (waiting := _pending(scraped(running)))[0] <= 16 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            os.kill(process, signal.SIGCONT)
            assert all(answer.result().as_numpy("text_features") is not None for answer in asked)
    finally:
        os.kill(process, signal.SIGCONT)
    assert firing(before, scraped(running) | waiting[1], tmp_path) == {"CmtPendingRequests", "CmtQueueTime"}


def _plain(server: TritonServer) -> InferenceServerClient:
    return InferenceServerClient(server.grpc_url.partition("://")[2])


def _tokens() -> list[InferInput]:
    made = []
    for spec in READY["text"]:
        tensor = InferInput(spec.name, [1, 16], "INT64")
        tensor.set_data_from_numpy(np.ones((1, 16), np.int64))
        made.append(tensor)
    return made


def _pending(scrape: Scrape) -> tuple[float, Scrape]:
    """How many requests wait in the stage where most do, and the lines that say so."""
    lines = {line: value for line, value in scrape.items() if line.startswith(GAUGES[0])}
    return max(lines.values()), lines


def process_of(server: TritonServer, stage: str, version: int) -> int:
    return stage_processes(server.pid or 0)[stage, version][0]


def test_faults(tinies: tuple[Release, Release], tmp_path: Path) -> None:
    """A stage's process is killed, and nobody starts it again. A server of its own, which isn't fit for more."""
    with server_on(tinies[0], tmp_path / "faults") as server:
        os.kill(process_of(server, "fuse", 1), signal.SIGKILL)

        def ask(client: EmotionClient) -> None:
            for _ in range(4):
                with pytest.raises((ServerUnavailable, InferenceFailed)):
                    client.predict(text="Hello?")

        before, after = between(server, ask)
        (tmp_path / "rules").mkdir()
        assert firing(before, after, tmp_path / "rules") == {"CmtFaults"}


def asked_of(url: str, *items: dict[str, str]) -> tuple[Scrape, Scrape]:
    before = scraped_of(url)
    for item in items:
        httpx.post(f"{url}/v1/emotion", json=item, timeout=60)
    return before, scraped_of(url)


def test_a_gateway_tells_refusals_from_faults(running: TritonServer, tmp_path: Path) -> None:
    sound, broken = {"text": "Hello?"}, {"image": "?"}
    with gateways.running("--triton", running.grpc_url, "--timeout-s", "30") as (url, _):
        assert firing(*asked_of(url, *[sound] * 5), tmp_path) == set()
        assert firing(*asked_of(url, *[sound, broken] * 4), tmp_path) == {"CmtGatewayRefusals"}


def test_a_gateway_without_a_triton(tmp_path: Path) -> None:
    with gateways.running("--triton", NOBODY) as (url, _):
        assert firing(*asked_of(url, *[{"text": "Hello?"}] * 4), tmp_path) == {"CmtGatewayFaults"}
