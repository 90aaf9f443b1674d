"""The gRPC client of docs/kubernetes.md goes round the servers that its name stands for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from rendering import K8S, one, rendered

CALLS = 20


class Live(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def ServerLive(self, request: object, context: object) -> service_pb2.ServerLiveResponse:  # noqa: N802
        self.asked += 1
        return service_pb2.ServerLiveResponse(live=True)


@contextlib.contextmanager
def listening(live: Live) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(live, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def test_the_client_of_the_docs_goes_round() -> None:
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", (K8S.parent / "docs" / "kubernetes.md").read_text(), re.DOTALL)
    )
    first, second = Live(), Live()
    with listening(first) as one_port, listening(second) as other_port:
        # What the name of a headless Service resolves to: several addresses.
        there = f"ipv4:127.0.0.1:{one_port},127.0.0.1:{other_port}"
        address = "dns:///cmt-triton-grpc.cmt.svc:8001"
        assert address in code
        names: dict[str, object] = {}
        exec(code.replace(address, there), names)
        with contextlib.closing(names["client"]) as client:  # type: ignore[type-var]
            assert all(client.is_server_live() for _ in range(CALLS))  # type: ignore[attr-defined]
    assert first.asked + second.asked == CALLS
    assert min(first.asked, second.asked) >= CALLS // 3


def test_that_name_is_the_headless_service() -> None:
    service = one(rendered("cpu"), "Service", "cmt-triton-grpc")
    assert service["metadata"]["namespace"] == "cmt"
    assert service["spec"]["ports"][0]["port"] == 8001
