"""What waits at a server's stages, read from its metrics."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from cmt_client import EmotionClient
from cmt_pipeline.stages import STAGES
from cmt_server.admission import Gate, Queue
from cmt_server.queues import Metrics, Watch, metrics_address, own_server, parse_queues
from cmt_server.server import TritonServer

TEXT = b"""# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
nv_inference_request_success{model="encode_text",version="1"} 7
nv_inference_request_success{model="encode_text",version="2"} 5
nv_inference_request_failure{model="encode_text",reason="OTHER",version="1"} 1
nv_inference_request_success{model="fuse",version="1"} 3
nv_inference_pending_request_count{model="encode_text",version="1"} 4
nv_inference_pending_request_count{model="encode_text",version="2"} 2
nv_inference_pending_request_count{model="fuse",version="1"} 0
nv_cpu_utilization 1
"""


def test_versions_are_added_up_and_a_failure_is_done_too() -> None:
    assert parse_queues(TEXT) == {"encode_text": Queue(6, 13), "fuse": Queue(0, 3)}


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], ("127.0.0.1", 8002)),
        (["--metrics-port=9", "--metrics-address=0.0.0.0"], ("127.0.0.1", 9)),
        (["--metrics-port", "9", "--http-address", "10.0.0.1"], ("10.0.0.1", 9)),
        (["--metrics-address=::", "--model-repository=/a"], ("::1", 8002)),
        (["--allow-metrics=false"], None),
        (["--allow-metrics", "False"], None),
    ],
)
def test_the_command_line_says_where(arguments: Sequence[str], address: tuple[str, int] | None) -> None:
    assert metrics_address(arguments) == address


def test_a_real_server_tells_every_stage(server: TritonServer) -> None:
    address = metrics_address(own_server(server.pid))
    assert address == ("127.0.0.1", server.metrics_port)
    metrics = Metrics(*address)
    before = metrics.queues()
    with EmotionClient(server.grpc_url) as client:
        client.predict(text="Who is there?")
    after = metrics.queues()
    metrics.close()
    assert STAGES.keys() <= after.keys()
    assert after["encode_text"].finished == before["encode_text"].finished + 1
    assert after["encode_audio"] == before["encode_audio"]


def test_without_metrics_the_gate_stays_open_and_that_is_said() -> None:
    said: list[str] = []
    gate = Gate("preprocess", ["encode_text"], 0.2)
    watch = Watch(gate, said.append, ["--allow-metrics=false"])
    watch.wake()
    for _ in range(100):
        assert gate.admit(("encode_text",)) is None
        gate.leave(("encode_text",))
    watch.close()
    assert len(said) == 1
    assert "switched off" in said[0]


def test_metrics_that_never_come_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_server.queues.PATIENCE", 2)
    monkeypatch.setattr("cmt_server.queues.FASTEST_S", 0.001)
    told = threading.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        told.set()

    watch = Watch(Gate("preprocess", [], 0.2), say, ["--metrics-port=1"])
    watch.wake()
    assert told.wait(30)
    watch.close()
    assert len(said) == 1
    assert "refused" in said[0]
