"""What a running Triton tells over HTTP, asked with the control client's transport; all of it together is bounded."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from cmt_client import ServiceError
from cmt_client.control_transport import ControlTransport, Reply
from cmt_client.operations import GetModelConfig, HttpCall, LoadModel, ModelReady
from cmt_pipeline.constants import CONTROL_HEADER, HTTP_PORT
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
        self._transport = ControlTransport(url, token_header=header)
        self.url, self.host = self._transport.url, self._transport.host
        self._token = token
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
            ready=self._call("GET", "/v2/health/ready").ok,
            control_open=self._control_open(),
            shared_memory_open=self._call("GET", "/v2/systemsharedmemory/status", token=False).ok,
            index=index,
            stuck=self._stuck(index, patience_s),
            process=process_on(self._transport.port or HTTP_PORT) if is_local(self.host) else None,
            models_ready={name: self._call("GET", ModelReady(name).http().path).ok for name in names},
            repository=Repository(
                {model.name: model for model in map(self._model, names) if model},
                frozenset(entry.name for entry in index or ()),
            ),
        )

    def _version(self) -> TritonVersion | None:
        reply = self._call("GET", "/v2")
        answer = reply.json()
        if not reply.ok or not isinstance(answer, dict) or "version" not in answer:
            raise ServerError(
                f"{self.url}/v2 answered with status {reply.status}, not as Triton does; is it the HTTP port?"
            )
        try:
            return triton_version(str(answer["version"]))
        except ValueError:
            return None

    def _index(self) -> tuple[IndexEntry, ...] | None:
        reply = self._call("POST", "/v2/repository/index", b"{}")
        entries = reply.json()
        if not reply.ok or not isinstance(entries, list):
            return None
        fields = ("name", "version", "state", "reason")
        answer = [entry for entry in entries if isinstance(entry, dict) and entry.get("name")]
        return tuple(IndexEntry(**{key: str(entry.get(key, "")) for key in fields}) for entry in answer)

    def _control_open(self) -> bool:
        """Whether anybody may load models: a name that nothing can have is looked for in the repository."""
        nobody = f"cmt-doctor-{secrets.token_hex(8)}"
        answer = self._call("POST", LoadModel(nobody).http().path, b"{}", token=False).json()
        return isinstance(answer, dict) and f"failed to load '{nobody}'" in str(answer.get("error"))

    def _stuck(self, index: tuple[IndexEntry, ...] | None, patience_s: float) -> tuple[IndexEntry, ...]:
        waiting = {entry for entry in index or () if entry.state == "UNLOADING"}
        patient_until = time.monotonic() + patience_s
        while waiting and time.monotonic() < patient_until:
            time.sleep(POLL_S)
            waiting &= set(self._index() or ())
        return tuple(sorted(waiting, key=str))

    def _model(self, name: str) -> Model | None:
        path = GetModelConfig(name).http().path
        reply = self._call("GET", path)
        config = ModelConfig()
        try:
            sized(json_format.ParseDict(reply.json() or {}, config, ignore_unknown_fields=True))
        except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        return Model(name, self.url + path, config) if reply.ok else None

    def _call(self, method: str, path: str, body: bytes | None = None, token: bool = True) -> Reply:
        """ServerError when there is no answer in time, or one of more than MAX_ANSWER_BYTES."""
        left_s = min(CALL_TIMEOUT_S, self._deadline - time.monotonic())
        if left_s <= 0:
            raise ServerError(f"{self.url} didn't answer everything within {ALL_TIMEOUT_S:g} s")
        try:
            return self._transport.exchange(HttpCall(method, path, body, self._token if token else None), left_s)
        except ServiceError as error:
            raise ServerError(f"{self.url} doesn't answer: {printable(str(error))}") from error


def is_local(host: str) -> bool:
    """Whether a host name means this machine alone."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(a.split("%")[0]).is_loopback for a in addresses)
