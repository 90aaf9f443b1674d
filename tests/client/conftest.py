"""Small servers on this machine that speak Triton's two protocols, or misbehave on purpose."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from cmt_client import FakeTransport
from cmt_client.operations import Infer
from cmt_pipeline.pipelines import PIPELINES


@dataclass
class Wired:
    """A server that answers on a port as `fake` does. refuse: what it says instead, as (status, text)."""

    fake: FakeTransport = field(default_factory=FakeTransport)
    refuse: tuple[Any, str] | None = None
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def infer(self, model: str) -> dict[str, np.ndarray[Any, Any]]:
        request = Infer(model, {"any": np.zeros((1, 1))}, tuple(s.name for s in PIPELINES[model].outputs))
        answer = self.fake.call(request, 1.0)
        return {name: np.asarray(array) for name, array in answer.outputs.items()}

    def parameter(self) -> tuple[str, str]:
        return "release", self.fake.release.to_json()


@dataclass(frozen=True)
class Pem:
    """A server's key and its certificate, which is its own authority."""

    key: Path
    certificate: Path


class GrpcServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, wired: Wired) -> None:
        self.wired = wired

    def heard(self, context: grpc.ServicerContext) -> None:
        self.wired.headers.append(dict(context.invocation_metadata()))
        if self.wired.refuse:
            context.abort(*self.wired.refuse)

    def ModelInfer(self, request, context):  # noqa: N802
        self.heard(context)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, array in self.wired.infer(request.model_name).items():
            text = array.dtype == np.object_
            response.outputs.add(name=name, datatype="BYTES" if text else "FP32", shape=array.shape)
            response.raw_output_contents.append(
                serialize_byte_tensor(array).item() if text else array.astype(np.float32).tobytes()
            )
        return response

    def ModelConfig(self, request, context):  # noqa: N802
        self.heard(context)
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        key, value = self.wired.parameter()
        response.config.parameters[key].string_value = value
        return response

    def RepositoryIndex(self, request, context):  # noqa: N802
        self.heard(context)
        models = [{"name": "emotion", "version": "3", "state": "READY"}, {"name": "fuse"}]
        return service_pb2.RepositoryIndexResponse(models=models)


class HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wired: Wired

    def do_GET(self) -> None:
        key, value = self.wired.parameter()
        self.reply({"name": self.path.split("/")[3], "parameters": {key: {"string_value": value}}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/index"):
            self.reply([{"name": "emotion", "version": "3", "state": "READY"}, {"name": "fuse"}])
            return
        tensors = [
            {"name": n, "datatype": "BYTES", "shape": a.shape, "data": [text.decode() for text in a.ravel()]}
            if a.dtype == np.object_
            else {"name": n, "datatype": "FP32", "shape": a.shape, "data": a.ravel().tolist()}
            for n, a in self.wired.infer(self.path.split("/")[3]).items()
        ]
        self.reply({"model_name": "any", "model_version": "1", "outputs": tensors})

    def reply(self, body: Any) -> None:
        self.wired.headers.append({key.lower(): value for key, value in self.headers.items()})
        status, body = (self.wired.refuse[0], {"error": self.wired.refuse[1]}) if self.wired.refuse else (200, body)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wired.fake.calls.append(self.path)  # type: ignore[arg-type]
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve_grpc(wired: Wired, port: int = 0, pem: Pem | None = None) -> Iterator[Wired]:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcServicer(wired), server)
    address = f"127.0.0.1:{port}"
    if pem:
        credentials = grpc.ssl_server_credentials([(pem.key.read_bytes(), pem.certificate.read_bytes())])
        wired.url = f"grpcs://127.0.0.1:{server.add_secure_port(address, credentials)}"
    else:
        wired.url = f"grpc://127.0.0.1:{server.add_insecure_port(address)}"
    server.start()
    yield wired
    server.stop(None).wait()


@contextmanager
def serve_http(wired: Wired, pem: Pem | None = None) -> Iterator[Wired]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HttpHandler,), {"wired": wired}))
    server.daemon_threads = True
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem.certificate, pem.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    wired.url = f"http{'s' if pem else ''}://127.0.0.1:{server.server_address[1]}"
    yield wired
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["grpc", "http"])
def wired(request: pytest.FixtureRequest) -> Iterator[Wired]:
    with (serve_grpc if request.param == "grpc" else serve_http)(Wired()) as server:
        yield server


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("pem")
    made = Pem(folder / "key.pem", folder / "certificate.pem")
    command = f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -keyout {made.key} -out {made.certificate}"
    subprocess.run(
        [openssl, *command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    return made


@pytest.fixture(params=["grpc", "http"])
def wired_tls(request: pytest.FixtureRequest, pem: Pem) -> Iterator[Wired]:
    with (serve_grpc if request.param == "grpc" else serve_http)(Wired(), pem=pem) as server:
        yield server


@pytest.fixture
def wired_grpc_at() -> Callable[[int], Any]:
    return lambda port: serve_grpc(Wired(), port)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def rude_port() -> Iterator[Callable[[bytes | None], int]]:
    """port(said): accepts connections, reads a little, says `said` and hangs up; None: never answers."""
    sockets: list[socket.socket] = []

    def start(said: bytes | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                sockets.append(connection)
                if said is not None:
                    connection.recv(65536)
                    connection.sendall(said)
                    connection.close()

        threading.Thread(target=loop, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    for opened in sockets:
        opened.close()
