"""How single pods are asked: in turn, and through the API server's port forwarding."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmt_client import EmotionClient, FakeTransport, ServerUnavailable
from cmt_client.transport import Transport
from cmt_rollout.kubernetes.pods import Pod
from cmt_rollout.kubernetes.port_forward import PodsTransport, PortForwardConnector
from k8s_place import KUBECONFIG, Place, place_of

PODS = [Pod(name, name, "10.0.0.1", "1", True, False, {}, "", False) for name in ("a", "b", "c")]


class Played:
    """A transport a pod, whose calls can be made to fail."""

    def __init__(self) -> None:
        self.transports = {pod.name: FakeTransport() for pod in PODS}

    def transport(self, pod: Pod) -> Transport:
        return self.transports[pod.name]

    def close(self) -> None:
        """Nothing is held."""


def test_pods_are_asked_in_turn() -> None:
    connector = Played()
    with EmotionClient("pods", transport=PodsTransport(lambda: PODS, connector), retries=0) as client:
        for _ in range(6):
            client.predict(text="Well.")
    assert all(transport.calls and transport.closed for transport in connector.transports.values())


def test_a_pod_that_went_away_is_passed_over_and_one_that_is_still_there_has_failed() -> None:
    connector, listed = Played(), list(PODS)
    with EmotionClient("pods", transport=PodsTransport(lambda: listed, connector), retries=0) as client:
        client.predict(text="Well.")
        connector.transports["a"].fail(ServerUnavailable("gone"))
        listed.remove(PODS[0])
        for _ in range(4):
            client.predict(text="Well.")
        connector.transports["b"].fail(ServerUnavailable("down"))
        with pytest.raises(ServerUnavailable, match="down"):
            client.predict_many([{"text": "Well."}] * 2, concurrency=1, errors="raise")
        listed.clear()
        connector.transports["b"].fail(ServerUnavailable("gone"))
        connector.transports["c"].fail(ServerUnavailable("gone"))
        with pytest.raises(ServerUnavailable, match="no pod is ready to be asked"):
            client.predict(text="Well.")


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


@pytest.fixture
def echoing(tmp_path: Path) -> Iterator[Place]:
    """Pods that send back what comes."""
    if KUBECONFIG is not None:
        pytest.skip("forwarding needs a kubelet and a container that listens, that is an image")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as echo, place_of(tmp_path) as place:
        echo.daemon_threads = True
        threading.Thread(target=echo.serve_forever, args=(0.05,), daemon=True).start()
        assert place.emulation
        place.emulation.backend = lambda pod, port: ("127.0.0.1", echo.server_address[1])
        place.deploy()
        yield place
        echo.shutdown()


@pytest.mark.long
def test_forwarded_bytes_come_back_whole_and_closing_ends_every_connection(echoing: Place) -> None:
    connector = PortForwardConnector(echoing.cluster)
    connector.transport(echoing.pods()[0]).close()
    (listener,) = connector._listeners.values()
    sent = bytes(range(256)) * 1000
    connections = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(3)]
    for connection in connections:
        connection.sendall(sent)
    came = b""
    while len(came) < len(sent):
        came += connections[0].recv(1 << 16)
    assert came == sent
    connector.close()
    assert connections[0].recv(1) == b""
    for connection in connections:
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port))


def test_a_pod_that_cant_be_forwarded_to_is_unavailable(echoing: Place) -> None:
    connector = PortForwardConnector(echoing.cluster)
    gone = PODS[0]
    client = EmotionClient(gone.name, transport=connector.transport(gone), retries=0, timeout_s=5)
    with client, pytest.raises(ServerUnavailable):
        client.predict(text="Well.")
    connector.close()


def test_only_what_works_on_a_cluster_loads_its_client() -> None:
    """`cmt --help` and upgrades of a single server need no `kubernetes` package."""
    paths = [path for path in sys.path if path]
    program = (
        f"import sys; sys.path[:0] = {paths}; import cmt_cli.main, cmt_rollout.rollout, cmt_rollout.server_target; "
        "assert not {'kubernetes', 'yaml'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
