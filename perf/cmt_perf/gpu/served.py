"""The whole service on a GPU: a real tritonserver, asked over gRPC, with instance groups, load and an upgrade."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client import EmotionClient
from cmt_perf.gpu.stages import stage_inputs
from cmt_perf.inputs import sized_item
from cmt_perf.service import ask, measure
from cmt_perf.traffic import Outcome, Traffic, TrafficPlan
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import no_progress
from cmt_pipeline.stages import COMPILED_STAGES, STAGES
from cmt_pipeline.triton_config import DEFAULT_TUNING
from cmt_release.release import Release
from cmt_server.tuning import write_tuning

AUDIO_S, TEXT_TOKENS, IMAGE_PX = 4.0, 64, 512
SINGLE, WARM_UP = 200, 20
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
START_S, STOP_S = 180.0, 60.0


class Server:
    """`cmt serve` in a process of its own. python: of the environment that serves."""

    def __init__(self, python: Path, state: Path, release: int, instances: int, work: Path) -> None:
        tuning = {name: replace(one, instances=instances) for name, one in DEFAULT_TUNING.items()}
        write_tuning(work / "tuning.json", tuning)
        self.python, self.state, self.log = python, state, work / f"serve-{instances}.log"
        free = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        ports = [part for name, port in free.items() for part in (f"--{name}-port", str(port))]
        self.command = [str(python), "-m", "cmt_cli.main", "serve", "--state", str(state), "--release", str(release)]
        self.command += ["--tuning", str(work / "tuning.json"), *ports]
        self.plan = TrafficPlan(
            grpc_url=f"grpc://127.0.0.1:{free['grpc']}",
            http_url=f"http://127.0.0.1:{free['http']}",
            closed_grpc=1,
            closed_http=0,
            open_rate=0.0,
            full=True,
            audio_s=AUDIO_S,
            text_tokens=TEXT_TOKENS,
            image_px=IMAGE_PX,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[float]:
        """Seconds that it took to be ready. RuntimeError with the log's end where it doesn't get ready."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        start = time.monotonic()
        try:
            while not self._ready():
                if process.poll() is not None or time.monotonic() - start > START_S:
                    raise RuntimeError(f"cmt serve isn't ready: {self.log.read_text()[-3000:]}")
                time.sleep(0.1)
            yield time.monotonic() - start
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._get("/v2/models/emotion/ready").status == 200)
        return False

    def _get(self, path: str) -> Any:
        return urllib.request.urlopen(f"{self.plan.http_url}{path}", timeout=5)  # noqa: S310

    def stage_ms(self) -> dict[str, float]:
        """What each stage computed a request for, on average since the server started."""
        found = {}
        for stage in STAGES:
            with contextlib.suppress(OSError):
                stats = json.load(self._get(f"/v2/models/{stage}/stats"))["model_stats"]
                ns, count = (sum(s["inference_stats"]["compute_infer"][key] for s in stats) for key in ("ns", "count"))
                found[stage] = round(ns / 1e6 / count, 3) if count else 0.0
        return found


def free_ports(count: int) -> list[int]:
    """Of this machine, different ones."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def single_stream(server: Server) -> dict[str, Any]:
    """One request at a time: files, then the ready tensors of the same kind."""
    latencies = [one.latency_ms for one in ask(server.plan, WARM_UP + SINGLE)[WARM_UP:]]
    with EmotionClient(server.plan.grpc_url) as client:
        stages = [STAGES[f"encode_{m}"] for m in MODALITIES]
        tensors: dict[str, Any] = {
            spec.name: tensor.numpy()
            for stage in stages
            for spec, tensor in zip(stage.inputs, stage_inputs(stage, 1, "cpu"), strict=True)
        }
        ready = [_timed(lambda: client.predict_tensors(**tensors)) for _ in range(WARM_UP + SINGLE)][WARM_UP:]
    return {"files": _percentiles(latencies), "tensors": _percentiles(ready), "stage_ms": server.stage_ms()}


def load(server: Server, answers: int, concurrencies: Sequence[int] = CONCURRENCIES) -> list[dict[str, float]]:
    """Answers a second and latencies at each number of requests inside the server."""
    curve = measure(server.plan, no_progress, cores=1, conditions={}, concurrencies=concurrencies, answers=answers)
    return [{key: round(value, 2) for key, value in asdict(point).items()} for point in curve.points]


def subsets(server: Server, release: Release) -> dict[str, float]:
    """Of each pipeline: the largest difference of a probability from PyTorch's golden answer."""
    files = release.golden_files()
    worst = {}
    with EmotionClient(server.plan.grpc_url) as client:
        for golden in release.manifest.golden:
            item: dict[str, Any] = {
                m: data.decode() if m == "text" else data for m, data in files.items() if m in golden.modalities
            }
            got = client.predict(**item).probabilities
            apart = max(abs(got[name] - p) for name, p in golden.probabilities.items())
            worst["+".join(golden.modalities)] = round(apart, 6)
    return worst


def upgrade(server: Server, to: Release, work: Path) -> dict[str, Any]:
    """The live release gives way to another while four loops ask."""
    command = [str(server.python), "-m", "cmt_cli.main", "upgrade", str(to.number), "--state", str(server.state)]
    plan = replace(server.plan, closed_grpc=4)
    with Traffic(plan, work / "upgrade.asked") as traffic:
        traffic.wait_for(50)
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        seconds = time.monotonic() - start
        traffic.wait_for(len(traffic.so_far()) + 50)
        outcome: Outcome = traffic.stop()
    by_release: dict[int, int] = {}
    for one in outcome.asked:
        by_release[one.release] = by_release.get(one.release, 0) + 1
    return {
        "rc": done.returncode,
        "said": "" if done.returncode == 0 else re.sub(r"\s+", " ", done.stderr + done.stdout)[-500:],
        "seconds": round(seconds, 1),
        "answers_of_release": by_release,
        "failed": sum(bool(one.error) for one in outcome.asked),
        "first_error": next((one.error for one in outcome.asked if one.error), ""),
        "lost": outcome.lost,
        "p99_ms": round(float(np.percentile([one.latency_ms for one in outcome.asked], 99)), 1),
    }


def sizes() -> dict[str, Any]:
    """Of a request, for the conditions."""
    item = sized_item(np.random.default_rng(0), AUDIO_S, TEXT_TOKENS, IMAGE_PX)
    return {
        "audio_s": AUDIO_S,
        "text_tokens": TEXT_TOKENS,
        "image_px": IMAGE_PX,
        "bytes": {name: len(part) for name, part in item.items() if isinstance(part, (bytes, str))},
    }


def _timed(run: Any) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _percentiles(latencies: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    return {
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
        "p99_ms": round(float(p99), 2),
        "mean_ms": round(statistics.fmean(latencies), 2),
        "requests": len(latencies),
    }


def compiled_mb(release: Release) -> dict[str, float]:
    """Of what each stage's folder holds."""
    return {
        stage.name: round(sum(p.stat().st_size for p in release.stage_folder(stage.name).iterdir()) / 1e6, 1)
        for stage in COMPILED_STAGES
    }
