"""PodConnector: how this process asks one single pod, before any Service sends it requests.

From within the cluster by its address; from outside through the API server's port forwarding.
"""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward

from cmt_client import ServerUnavailable
from cmt_client.operations import Operation
from cmt_client.transport import Transport, connect
from cmt_pipeline.constants import GRPC_PORT, LOOPBACK
from cmt_rollout.kubernetes.cluster import Cluster
from cmt_rollout.kubernetes.pods import Pod

T = TypeVar("T")

CHUNK = 1 << 16
POLL_S = 0.05
FAREWELL_S = 2.0
TURNS = 10  # pods that may go away under one request


class PodConnector(Protocol):
    """Opens transports to pods."""

    def transport(self, pod: Pod) -> Transport:
        """Asks this pod and no other; the caller closes it."""

    def close(self) -> None:
        """Lets go of what transports went through."""


class DirectConnector:
    """By a pod's address: from within the cluster."""

    def transport(self, pod: Pod) -> Transport:
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        return connect(f"grpc://{host}:{GRPC_PORT}")

    def close(self) -> None:
        """Nothing is held."""


class PortForwardConnector:
    """Through the API server, as `kubectl port-forward` does."""

    def __init__(self, cluster: Cluster) -> None:
        self._namespace = cluster.namespace
        # The client swaps its way of calling while it forwards: nobody else may use this one meanwhile.
        self._core = client.CoreV1Api(client.ApiClient(cluster.api.configuration))
        self._lock = threading.Lock()
        self._listeners: dict[str, _Listener] = {}

    def transport(self, pod: Pod) -> Transport:
        if pod.uid not in self._listeners:
            self._listeners[pod.uid] = _Listener(lambda: self._connection(pod.name))
        return connect(f"grpc://127.0.0.1:{self._listeners[pod.uid].port}")

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def _connection(self, name: str) -> Any:
        with self._lock:
            forward = portforward(
                self._core.connect_get_namespaced_pod_portforward, name, self._namespace, ports=str(GRPC_PORT)
            )
        return forward.socket(GRPC_PORT)


class _Listener:
    """A port of this machine, each of whose connections is carried on through `far`."""

    def __init__(self, far: Callable[[], Any]) -> None:
        self._near = near = set[socket.socket]()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                near.add(self.request)
                # Whatever fails, the near end sees its connection close.
                with contextlib.suppress(ApiException, OSError), contextlib.closing(far()) as there:
                    _carry(self.request, there)
                near.discard(self.request)

        self._server = socketserver.ThreadingTCPServer((LOOPBACK, 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="cmt-forward", daemon=True).start()

    def close(self) -> None:
        """Ends every connection, and waits until it is ended."""
        self._server.shutdown()
        for connection in list(self._near):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


def _carry(near: socket.socket, far: Any) -> None:
    """Bytes both ways until either end closes; the far end is read to its end, for its client can't bear less."""
    try:
        other = {near: far, far: near}
        while True:
            for source in select.select([near, far], [], [])[0]:
                data = source.recv(CHUNK)
                if not data:
                    return
                other[source].sendall(data)
    finally:
        far.settimeout(FAREWELL_S)
        far.shutdown(socket.SHUT_WR)
        while far.recv(CHUNK):
            pass


class PodsTransport:
    """Asks pods in turn. One that went away is passed over; one that is still listed and fails has failed."""

    def __init__(self, pods: Callable[[], Sequence[Pod]], connector: PodConnector) -> None:
        self._list, self._connector = pods, connector
        self._pods = list(pods())
        self._open: dict[str, Transport] = {}
        self._turn = 0

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        for _ in range(TURNS):
            pod = self._next()
            try:
                return self._transport(pod).call(operation, timeout_s)
            except ServerUnavailable:
                self._pods = list(self._list())
                if any(known.uid == pod.uid for known in self._pods):
                    raise
        raise ServerUnavailable("pods go away faster than they can be asked")

    def close(self) -> None:
        for transport in self._open.values():
            transport.close()
        self._open.clear()

    def _next(self) -> Pod:
        if not self._pods:
            raise ServerUnavailable("no pod is ready to be asked")
        self._turn += 1
        return self._pods[self._turn % len(self._pods)]

    def _transport(self, pod: Pod) -> Transport:
        if pod.uid not in self._open:
            self._open[pod.uid] = self._connector.transport(pod)
        return self._open[pod.uid]
