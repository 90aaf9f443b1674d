"""`make prometheus`: Debian's own, beside a real server and its gateway, with the rules and the dashboard of k8s/."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmt_server.server import TritonServer
from gateways import ask_of_all_kinds
from monitoring import expressions, rules

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus isn't installed: `make promtool` unpacks Debian's"
)
#: Metrics of the dashboard that need a GPU or Kubernetes.
ELSEWHERE = ("nv_gpu_", "kube_", "container_")
PATIENCE_S = 60.0


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as reply:
            return json.load(reply)["data"]

    def value(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])

    def await_value(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self.value(expression):
                    return
            except urllib.error.URLError:
                pass  # it is still starting
            assert time.monotonic() < deadline, expression
            time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(server: TritonServer, front_door: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen both at work, and evaluated the rules since."""
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "MONITORING": folder,
        "PROMETHEUS": address,
        "TRITON": f"127.0.0.1:{server.metrics_port}",
        "GATEWAY": front_door.removeprefix("http://"),
        "EVERY": "1s",
    }
    command = ["make", "prometheus", *(f"{name}={value}" for name, value in settings.items())]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        running = Prometheus(f"http://{address}")
        for metric in ("cmt_gateway_sessions", "cmt_accepted_total"):
            running.await_value(metric)
        ask_of_all_kinds(front_door)
        for recorded in ("cmt:gateway_turn_seconds:p95_5m", "cmt:accepted:rate5m > 0"):
            running.await_value(recorded)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_it_asks_the_server_and_its_gateway(prometheus: Prometheus) -> None:
    targets = prometheus.get("targets")["activeTargets"]
    assert {target["labels"]["container"]: target["health"] for target in targets} == {"triton": "up", "gateway": "up"}


def test_every_rule_is_evaluated_and_none_fires(prometheus: Prometheus) -> None:
    found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {rule.get("record") or rule["alert"] for rule in rules()}
    assert {rule["name"]: rule["lastError"] for rule in found if rule["health"] != "ok"} == {}
    assert {rule["name"]: rule["state"] for rule in found if rule.get("state") == "firing"} == {}


@pytest.mark.parametrize("where", [where for where in expressions() if where.startswith("panel")])
def test_every_panel_shows_something(prometheus: Prometheus, where: str) -> None:
    expression = expressions()[where].replace('namespace="cmt"', 'namespace="local"')
    shown = [sample for sample in prometheus.value(expression) if sample["value"][1] != "NaN"]
    assert shown or any(name in expression for name in ELSEWHERE) or expression.endswith("> 0")  # nothing failed
