"""What a server is started with, checked before anything starts, and the command line that says so to tritonserver."""

from __future__ import annotations

import ipaddress
import math
import re
import secrets
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cmt_pipeline.constants import CONTROL_HEADER, GRPC_PORT, HTTP_PORT, LOOPBACK, METRICS_PORT
from cmt_pipeline.pipelines import PIPELINES
from cmt_server.repository import Repository

#: Model control loads code, and a registered memory region can be read back: both want the token.
RESTRICTED = "model-repository,shared-memory,trace,logging"
#: What an HTTP header carries as it is (RFC 6750), and tritonserver's flag as well.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
LOG_LEVELS = ("error", "warning", "info")
MAX_PORT = 65_535
#: Quantile -> how far from it the one that is told may be.
QUANTILE_ERRORS = ((0.99, 0.001), (0.9, 0.01), (0.0, 0.05))
#: A server is drained before it is told to exit: what it would wait for then are connections that idle clients keep.
IDLE_TIMEOUT_S = 2
TRACE_TIMEOUT_S = 30  # a trace is written once an orderly exit has let go of the models: later on a crowded machine


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Tls:
    """PEM files of the gRPC service. Triton's HTTP service has no TLS: a proxy before it has to end it."""

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        """ValueError for files that are no certificate with its key."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except OSError as error:  # SSLError is one
            what = f"TLS: got {self.certificate} and {self.key}; expected a PEM certificate and its key"
            raise ValueError(f"{what} ({error.strerror or error})") from error


@dataclass(frozen=True)
class Traces:
    """OpenTelemetry spans of requests and their steps, sent over OTLP/HTTP. every: of how many requests one is traced;
    a request with a `traceparent` joins its caller's trace."""

    url: str
    every: int = 100

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "," in self.url:
            raise ValueError(
                f"traces: got {self.url!r}; expected the URL of an OTLP/HTTP collector: http://HOST/v1/traces"
            )
        if self.every < 1:
            raise ValueError(f"traces: got one of every {self.every} requests; expected 1 or more")


@dataclass(frozen=True)
class ServerOptions:
    """A port of 0 takes a free one. work: a folder of the server's own, for its log and backends. trace: file that
    gets the times of every request and of its steps once the server has ended; for measurements, never for long.

    model_config_name: by default the one for the live release's engine. expose_vulnerable: listen beyond this machine
    though the tritonserver has published faults. latency_quantiles: told in the metrics beside the sums; none costs
    nothing. verbose: Triton's own --log-verbose.
    """

    repository: Path
    work: Path
    host: str = LOOPBACK
    http_port: int = HTTP_PORT
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    pipelines: tuple[str, ...] = tuple(PIPELINES)
    model_config_name: str | None = None
    ready_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    control_token: str = field(default_factory=new_token, repr=False)
    trace: Path | None = None
    expose_vulnerable: bool = False
    tls: Tls | None = None
    traces: Traces | None = None
    latency_quantiles: tuple[float, ...] = ()
    log_level: str = "info"
    verbose: int = 0

    def __post_init__(self) -> None:
        """ValueError for a value out of range."""
        for name, port in self.ports.items():
            if not 0 <= port <= MAX_PORT:
                raise ValueError(f"{name} port: got {port}; expected 0 (a free one) to {MAX_PORT}")
        chosen = [port for port in self.ports.values() if port]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"ports: got {', '.join(map(str, chosen))}; expected three different ones")
        for name, seconds in (("ready_timeout_s", self.ready_timeout_s), ("drain_timeout_s", self.drain_timeout_s)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{name}: got {seconds:g}; expected seconds, 0 or more")
        if not TOKEN.fullmatch(self.control_token):
            raise ValueError("control token: expected letters, digits and -._~+/, with any = at its end")
        if any(not 0 < quantile < 1 for quantile in self.latency_quantiles):
            raise ValueError(f"latency quantiles: got {self.latency_quantiles}; expected numbers between 0 and 1")
        if self.log_level not in LOG_LEVELS or self.verbose < 0:
            raise ValueError(f"log level: got {self.log_level!r}; expected {', '.join(LOG_LEVELS)}, verbose 0 or more")
        if self.trace and self.traces:
            raise ValueError("traces: got a file and a collector; expected one of them")
        is_local(self.host)

    @property
    def ports(self) -> dict[str, int]:
        return {"HTTP": self.http_port, "gRPC": self.grpc_port, "metrics": self.metrics_port}


def is_local(host: str) -> bool:
    """Whether an address to listen on means this machine alone. ValueError for one that isn't an IPv4 address."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)}
    except OSError as error:
        raise ValueError(
            f"host: got {host!r}; expected an IPv4 address of this machine, or 0.0.0.0 ({error})"
        ) from error
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def command_line(options: ServerOptions, ports: Mapping[str, int], name: str, regions: str) -> list[str]:
    """tritonserver's flags, without those of `secret_flags`. name: what the server is to call itself; regions: how the
    names of its memory regions begin."""
    flags = {
        "id": name,
        "model-control-mode": "explicit",
        "strict-readiness": "false",
        "http-address": options.host,
        "http-port": ports["HTTP"],
        "grpc-address": options.host,
        "grpc-port": ports["gRPC"],
        "metrics-address": options.host,
        "metrics-port": ports["metrics"],
        "exit-timeout-secs": TRACE_TIMEOUT_S if options.trace else IDLE_TIMEOUT_S,
        "log-info": options.log_level == "info",
        "log-warning": options.log_level != "error",
        "log-verbose": options.verbose,
    }
    if variant := options.model_config_name or Repository(options.repository).variant():
        flags["model-config-name"] = variant
    if options.tls:
        flags |= {
            "grpc-use-ssl": True,
            "grpc-server-cert": options.tls.certificate.absolute(),
            "grpc-server-key": options.tls.key.absolute(),
        }
    return [
        "--disable-auto-complete-config",
        *(
            f"--{flag}={str(value).lower() if value is True or value is False else value}"
            for flag, value in flags.items()
        ),
        *_metrics(options.latency_quantiles),
        *_traces(options),
        f"--backend-config=python,shm-region-prefix-name={regions}",
        "--backend-config=python,stub-timeout-seconds=300",
        *(f"--model-repository={folder}" for folder in Repository(options.repository).model_folders),
        *(f"--load-model={pipeline}" for pipeline in options.pipelines),
    ]


def secret_flags(options: ServerOptions) -> list[str]:
    """The flags that no other user may read."""
    restricted = f"{RESTRICTED}:{CONTROL_HEADER}={options.control_token}"
    return [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]


def _metrics(quantiles: tuple[float, ...]) -> list[str]:
    if not quantiles:
        return []
    told = [f"{q:g}:{next(error for least, error in QUANTILE_ERRORS if q >= least):g}" for q in quantiles]
    return ["--metrics-config=summary_latencies=true", f"--metrics-config=summary_quantiles={','.join(told)}"]


def _traces(options: ServerOptions) -> list[str]:
    settings: tuple[str, ...] = ()
    if options.trace:
        settings = (f"triton,file={options.trace}", "rate=1", "level=TIMESTAMPS", "mode=triton")
    elif options.traces:
        settings = (
            "mode=opentelemetry",
            f"rate={options.traces.every}",
            "level=TIMESTAMPS",
            f"opentelemetry,url={options.traces.url}",
            "opentelemetry,resource=service.name=cmt-triton",
        )
    return [f"--trace-config={setting}" for setting in settings]
