"""`cmt plan`, from what the real server was measured to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmt_perf.capacity import ServiceCurve
from cmt_perf.capacity_trial import table, trial
from cmt_perf.service import measure
from cmt_perf.traffic import TrafficPlan
from cmt_pipeline.progress import no_progress
from cmt_server.server import TritonServer


def cmt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cmt_cli.main", "plan", *arguments], capture_output=True, text=True, timeout=120
    )


def traffic(server: TritonServer) -> TrafficPlan:
    return TrafficPlan(server.grpc_url, server.http_url, open_protocols=("grpc",), open_canary="off", full=True)


@pytest.fixture(scope="module")
def curve(server: TritonServer) -> ServiceCurve:
    return measure(traffic(server), no_progress, cores=2, conditions={}, concurrencies=(1, 3), answers=20)


@pytest.fixture
def file(curve: ServiceCurve, tmp_path: Path) -> Path:
    path = tmp_path / "curve.json"
    path.write_text(curve.to_json())
    return path


@pytest.mark.long
def test_a_server_is_measured(curve: ServiceCurve) -> None:
    assert [point.concurrency for point in curve.points] == [1, 3]
    assert all(0 < point.p50_ms <= point.p95_ms for point in curve.points)
    assert 0 < curve.points[0].throughput < 1.05e3 / curve.points[0].mean_ms  # one at a time
    assert sum(curve.work) / len(curve.work) == pytest.approx(1)
    assert curve.request_bytes > 10_000  # a picture and 0.9 s of sound


@pytest.mark.slow
def test_the_open_loop_is_set_beside_the_model(curve: ServiceCurve, server: TritonServer) -> None:
    found, rows = trial(traffic(server), lambda _: curve, (0.3,), 2, 2.0, no_progress)
    assert found.points == curve.points
    assert rows[0]["requests"] == 2 * round(2.0 * 0.3 * curve.saturation)
    assert rows[0]["rate"] == pytest.approx(0.3 * curve.saturation, abs=0.01)
    assert rows[0]["off_p95"] == pytest.approx(rows[0]["predicted_p95_ms"] / rows[0]["measured_p95_ms"] - 1, abs=0.01)
    assert "30%" in table({"rows": rows})


@pytest.mark.long
def test_the_plan_is_printed(file: Path, curve: ServiceCurve) -> None:
    slo_ms = 20 * curve.points[0].p95_ms
    printed = cmt("--rate", "50000", "--slo-ms", str(slo_ms), "--curve", str(file), "--node-price", "0.8")
    assert printed.returncode == 0, printed.stderr
    assert "One pod of 2 cores takes" in printed.stdout
    assert "5,000,000" in printed.stdout
    assert "clusters" in printed.stdout
    plans = json.loads(cmt("--rate", "10", "--slo-ms", str(slo_ms), "--curve", str(file), "--json").stdout)
    assert [plan["rate"] for plan in plans] == [10.0**n for n in range(1, 8)]
    assert all(plan["p95_ms"] <= slo_ms for plan in plans)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cmt plan --measure"), ("{}", "points"), ("no", "JSON"), ('{"points": []}', "curve.json")],
)
def test_a_curve_that_is_none_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "curve.json"
    if content is not None:
        path.write_text(content)
    printed = cmt("--rate", "10", "--slo-ms", "100", "--curve", str(path))
    assert printed.returncode == 2
    assert told.split()[-1] in " ".join(printed.stderr.split())
    assert "Traceback" not in printed.stderr


def test_an_slo_that_no_pods_can_meet_is_told(file: Path) -> None:
    printed = cmt("--rate", "10", "--slo-ms", "0.1", "--curve", str(file))
    assert printed.returncode == 2
    assert "more replicas make no request faster" in " ".join(printed.stderr.split())
