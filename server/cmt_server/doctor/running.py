"""What a running Triton tells over HTTP, asked with the standard library; every call and answer is bounded."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from cmt_pipeline.constants import CONTROL_HEADER, HTTP_PORT, LOOPBACK
from cmt_server.advisories import TritonVersion
from cmt_server.binary import triton_version
from cmt_server.doctor.finding import printable
from cmt_server.doctor.process import Process, process_on
from cmt_server.doctor.repository import Model, Repository, sized
from cmt_server.errors import ServerError

CALL_TIMEOUT_S = 10.0
ALL_TIMEOUT_S = 60.0
PATIENCE_S = 3.0
POLL_S = 0.25
MAX_ANSWER_BYTES = 16 << 20
OK = http.client.OK


@dataclass(frozen=True)
class IndexEntry:
    """A line of the repository index; version and state are empty for a model that was never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name


@dataclass(frozen=True)
class Observation:
    """What was seen of a server. index: None when it may not be read; stuck: versions that stayed UNLOADING.

    models_ready: of each model with a READY version, whether it answers so; repository: the configurations in force;
    process: of a server on this machine, where this user may look at it.
    """

    url: str
    local: bool
    version: TritonVersion | None
    ready: bool
    control_open: bool
    shared_memory_open: bool
    index: tuple[IndexEntry, ...] | None
    stuck: tuple[IndexEntry, ...]
    models_ready: Mapping[str, bool]
    repository: Repository
    process: Process | None = None


class RunningTriton:
    """A server at http://host:port. token: for the restricted APIs, sent in the header named."""

    def __init__(self, url: str, token: str | None = None, header: str = CONTROL_HEADER) -> None:
        """ValueError for another kind of URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"URL: got {url!r}; expected Triton's HTTP service, such as http://{LOOPBACK}:{HTTP_PORT}")
        self.url, self.host = url.rstrip("/"), parts.hostname
        self._port, self._prefix = parts.port, parts.path.rstrip("/")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._token = {header: token} if token else {}
        self._deadline = 0.0

    def observe(self, patience_s: float = PATIENCE_S) -> Observation:
        """Asks for everything the rules look at, changing nothing; within ALL_TIMEOUT_S.

        patience_s: how long a version may be UNLOADING before it counts as stuck. Raises ServerError when nobody
        answers, or not as Triton does.
        """
        self._deadline = time.monotonic() + ALL_TIMEOUT_S
        version = self._version()
        index = self._index()
        names = sorted({entry.name for entry in index or () if entry.state == "READY"})
        return Observation(
            url=self.url,
            local=is_local(self.host),
            version=version,
            ready=self._call("GET", "/v2/health/ready")[0] == OK,
            control_open=self._control_open(),
            shared_memory_open=self._call("GET", "/v2/systemsharedmemory/status", token=False)[0] == OK,
            index=index,
            stuck=self._stuck(index, patience_s),
            process=process_on(self._port or HTTP_PORT) if is_local(self.host) else None,
            models_ready={name: self._call("GET", f"/v2/models/{quote(name, '')}/ready")[0] == OK for name in names},
            repository=Repository(
                {model.name: model for model in map(self._model, names) if model},
                frozenset(entry.name for entry in index or ()),
            ),
        )

    def _version(self) -> TritonVersion | None:
        status, body = self._call("GET", "/v2")
        answer = _json(body)
        if status != OK or not isinstance(answer, dict) or "version" not in answer:
            raise ServerError(f"{self.url}/v2 answered with status {status}, not as Triton does; is it the HTTP port?")
        try:
            return triton_version(str(answer["version"]))
        except ValueError:
            return None

    def _index(self) -> tuple[IndexEntry, ...] | None:
        status, body = self._call("POST", "/v2/repository/index", b"{}")
        entries = _json(body)
        if status != OK or not isinstance(entries, list):
            return None
        fields = ("name", "version", "state", "reason")
        answer = [entry for entry in entries if isinstance(entry, dict) and entry.get("name")]
        return tuple(IndexEntry(**{key: str(entry.get(key, "")) for key in fields}) for entry in answer)

    def _control_open(self) -> bool:
        """Whether anybody may load models: a name that nothing can have is looked for in the repository."""
        nobody = f"cmt-doctor-{secrets.token_hex(8)}"
        _, body = self._call("POST", f"/v2/repository/models/{nobody}/load", b"{}", token=False)
        answer = _json(body)
        return isinstance(answer, dict) and f"failed to load '{nobody}'" in str(answer.get("error"))

    def _stuck(self, index: tuple[IndexEntry, ...] | None, patience_s: float) -> tuple[IndexEntry, ...]:
        waiting = {entry for entry in index or () if entry.state == "UNLOADING"}
        patient_until = time.monotonic() + patience_s
        while waiting and time.monotonic() < patient_until:
            time.sleep(POLL_S)
            waiting &= set(self._index() or ())
        return tuple(sorted(waiting, key=str))

    def _model(self, name: str) -> Model | None:
        path = f"/v2/models/{quote(name, '')}/config"
        status, body = self._call("GET", path)
        config = ModelConfig()
        try:
            sized(json_format.ParseDict(_json(body) or {}, config, ignore_unknown_fields=True))
        except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        return Model(name, self.url + path, config) if status == OK else None

    def _call(self, method: str, path: str, body: bytes | None = None, token: bool = True) -> tuple[int, bytes]:
        """Status and answer. ServerError when there is none in time, or more than MAX_ANSWER_BYTES."""
        left_s = min(CALL_TIMEOUT_S, self._deadline - time.monotonic())
        if left_s <= 0:
            raise ServerError(f"{self.url} didn't answer everything within {ALL_TIMEOUT_S:g} s")
        ends = time.monotonic() + left_s
        connection = self._connect(self.host, self._port, timeout=left_s)
        try:
            connection.connect()
            with _cut_off(connection.sock, left_s):
                connection.request(method, self._prefix + path, body, self._token if token else {})
                response = connection.getresponse()
                data = response.read(MAX_ANSWER_BYTES + 1)
            if time.monotonic() > ends:
                raise TimeoutError(f"cut off after {left_s:.3g} s")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} doesn't answer: {printable(str(error)) or type(error).__name__}") from error
        finally:
            connection.close()
        if len(data) > MAX_ANSWER_BYTES:
            raise ServerError(f"{self.url}{path} answered with more than {MAX_ANSWER_BYTES} bytes")
        return response.status, data


@contextlib.contextmanager
def _cut_off(opened: socket.socket, after_s: float) -> Iterator[None]:
    """Ends the connection of a server that sends, but so slowly that no time-out of a single read notices."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(after_s, cut)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_local(host: str) -> bool:
    """Whether a host name means this machine alone."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(a.split("%")[0]).is_loopback for a in addresses)


def _json(body: bytes) -> Any:
    """None where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
