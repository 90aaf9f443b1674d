"""`cmt serve`: a release on a tritonserver of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.gateway import GatewayProcess, gateway_before
from cmt_cli.signals import Stopped, StopSignal, stop_signal
from cmt_cli.state import DEFAULT_STATE, RunningServer, State, StateOption
from cmt_pipeline.constants import GATEWAY_PORT, GRPC_PORT, HTTP_PORT, LOOPBACK, METRICS_PORT, TOKEN_VARIABLE

if TYPE_CHECKING:
    from cmt_pipeline.limits import Limits
    from cmt_release.release import Release
    from cmt_server.repository import InstallOptions
    from cmt_server.server import ServerOptions, TritonServer

WATCH_S = 0.5
LOG = logging.getLogger(__name__)


def serve(
    release: Annotated[
        int | None, typer.Option(help="Release number; by default the one served last here, otherwise the newest.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="IPv4 address to listen on. Others than this machine's own need a Triton without holes.")
    ] = LOOPBACK,
    expose_vulnerable_triton: Annotated[
        bool,
        typer.Option(
            "--expose-vulnerable-triton",
            envvar="CMT_EXPOSE_VULNERABLE_TRITON",
            help="Let others reach a Triton with published vulnerabilities.",
        ),
    ] = False,
    http_port: Annotated[int, typer.Option(help="0 takes a free one.")] = HTTP_PORT,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free one.")] = GRPC_PORT,
    metrics_port: Annotated[int, typer.Option(help="0 takes a free one.")] = METRICS_PORT,
    limit: Annotated[list[str] | None, typer.Option(help="Input limit as NAME=VALUE; repeatable.")] = None,
    model_config_name: Annotated[
        str | None,
        typer.Option(help="Variant of the stages' Triton configurations; by default the one for the release's engine."),
    ] = None,
    tuning: Annotated[Path | None, typer.Option(help="File that `cmt tune` wrote for this machine.")] = None,
    drain_timeout_s: Annotated[float, typer.Option(help="Seconds that stopping waits for requests in flight.")] = 30.0,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(envvar="CMT_TLS_CERTIFICATE", help="PEM file: TLS on the gRPC port; HTTP needs a proxy."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="CMT_TLS_KEY", help="PEM file: the certificate's key.")] = None,
    latency_quantiles: Annotated[
        str, typer.Option(envvar="CMT_LATENCY_QUANTILES", help="Quantiles of latency in the metrics, as 0.5,0.95,0.99.")
    ] = "",
    traces_url: Annotated[
        str, typer.Option(envvar="CMT_TRACES_URL", help="OTLP/HTTP collector of OpenTelemetry traces.")
    ] = "",
    traces_every: Annotated[int, typer.Option(envvar="CMT_TRACES_EVERY", help="Trace one of so many requests.")] = 100,
    triton_log_level: Annotated[
        str, typer.Option(envvar="CMT_TRITON_LOG_LEVEL", help="Triton's own: error, warning, info, or verbose=N.")
    ] = "info",
    triton_log: Annotated[
        bool, typer.Option("--triton-log", envvar="CMT_TRITON_LOG", help="Log Triton's lines here too.")
    ] = False,
    gateway: Annotated[
        bool,
        typer.Option("--gateway", help="Start `cmt gateway` before it too; the environment says how: CMT_CONTEXT, …"),
    ] = False,
    gateway_port: Annotated[int, typer.Option(help="0 takes a free one.")] = GATEWAY_PORT,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Serves a release until Ctrl-C or SIGTERM, then finishes what is in flight and stops.

    Exits with 0 when it was told to stop, 1 when it can't start, 2 for options that make no sense, and 3 when what died
    again and again was given up.

    Example: [bold]cmt serve --release 1 --limit max_audio_s=8[/]
    """
    from cmt_pipeline.triton_config import DEFAULT_TUNING
    from cmt_server.options import Tls, Traces
    from cmt_server.repository import InstallOptions
    from cmt_server.server import ServerOptions, new_token
    from cmt_server.triton_log import log_line
    from cmt_server.tuning import read_tuning

    if (tls_certificate is None) != (tls_key is None):
        raise ValueError("TLS: expected both --tls-certificate and --tls-key")
    chosen = State(state)
    level, verbose = log_level_from(triton_log_level)
    with stop_signal() as stop, contextlib.suppress(Stopped):
        with stop.at_once():
            served = chosen_release(chosen, release)
            install = InstallOptions(limits_from(limit), read_tuning(tuning) if tuning else DEFAULT_TUNING)
        options = ServerOptions(
            repository=chosen.repository.absolute(),
            work=chosen.server.absolute(),
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            model_config_name=model_config_name,
            drain_timeout_s=drain_timeout_s,
            control_token=os.environ.get(TOKEN_VARIABLE) or new_token(),
            expose_vulnerable=expose_vulnerable_triton,
            tls=Tls(tls_certificate, tls_key) if tls_certificate and tls_key else None,
            traces=Traces(traces_url, traces_every) if traces_url else None,
            latency_quantiles=quantiles_from(latency_quantiles),
            log_level=level,
            verbose=verbose,
        )
        with (
            serving(chosen, served, options, install, stop, log_line if triton_log else None) as server,
            gateway_before(server.grpc_url, gateway_port) if gateway else contextlib.nullcontext() as before,
        ):
            _keep_up(server, stop, before)


def _keep_up(server: TritonServer, stop: StopSignal, gateway: GatewayProcess | None) -> None:
    """Says where the server is, and looks after it until somebody wants it to stop."""
    from cmt_server.supervise import Supervisor

    for note in server.notes:
        LOG.warning(note)
    for what, where in (("gRPC ", server.grpc_url), ("HTTP ", server.http_url), ("log  ", server.log)):
        LOG.info(f"{what} {where}")
    LOG.info("Ctrl-C drains and stops.")
    supervisor = Supervisor(server, LOG.warning, stop.check)
    while not stop.wait(WATCH_S):
        supervisor.look()
        if gateway:
            gateway.look()
    LOG.info("draining: requests in flight finish, new ones are refused")


def chosen_release(state: State, number: int | None) -> Release:
    """The release asked for; else the one that was live here last, which an upgrade may have chosen; else the newest.

    A release that an upgrade rejected is never served because it is the newest.
    """
    from cmt_release.release import open_release, release_numbers
    from cmt_server.repository import Repository

    live = Repository(state.repository).live() if number is None else None
    newer = [n for n in release_numbers(state.releases) if live and n > live.release]
    if live and newer:
        LOG.info(
            f"serving release {live.release}, as last time; {', '.join(map(str, newer))} newer: --release, cmt upgrade"
        )
    return open_release(state.releases, number if live is None else live.release)


@contextlib.contextmanager
def serving(
    state: State,
    release: Release,
    options: ServerOptions,
    install: InstallOptions,
    stop: StopSignal | None = None,
    on_log_line: Callable[[str], None] | None = None,
) -> Iterator[TritonServer]:
    """A server on this release, announced in the state folder while it runs. Only one at a time for a state folder.

    stop: ends the start with Stopped when it is set.
    """
    from cmt_cli.show import progress_bar
    from cmt_server.fitness import check_fits
    from cmt_server.repository import Repository
    from cmt_server.server import TritonServer

    stop = stop or StopSignal()
    check_fits(release)
    with only_one(state.root / "serve.lock"):
        server = TritonServer(options, on_log_line)
        repository = Repository(options.repository)
        with stop.at_once(), repository.lock():
            repository.install(release, install)
        with repository.starting(), progress_bar("serve") as show:

            def progress(ready: int, total: int) -> None:
                stop.check()
                show("waiting until every pipeline answers", ready / total)

            server.start(progress)
        try:
            state.announce(
                RunningServer(
                    pid=os.getpid(),
                    http_url=server.http_url,
                    grpc_url=server.grpc_url,
                    metrics_url=f"http://{options.host}:{server.metrics_port}/metrics",
                    control_token=options.control_token,
                )
            )
            yield server
        finally:
            server.stop()
            state.server_file.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Holds a lock file. ServerError if somebody else does."""
    from cmt_server.errors import ServerError

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(
                f"another server runs on {path.parent}; stop it, or name another folder with --state"
            ) from None
        yield


def limits_from(pairs: list[str] | None) -> Limits:
    """Limits with some set by NAME=VALUE. ValueError for an unknown name or a value of another kind."""
    from dataclasses import fields

    from cmt_pipeline.limits import Limits

    known = [f.name for f in fields(Limits)]
    chosen: dict[str, str] = {}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if name not in known or not separator:
            raise ValueError(f"--limit: got {pair!r}; expected NAME=VALUE with one of {', '.join(known)}")
        chosen[name] = value
    try:
        for value in chosen.values():
            if not (math.isfinite(float(value)) and float(value) > 0):
                raise ValueError(f"{value} is no size")
        return Limits.from_text(chosen)
    except ValueError as error:
        got = " ".join(pairs or [])
        raise ValueError(f"--limit: got {got}; expected whole numbers or seconds above 0 ({error})") from None


def quantiles_from(text: str) -> tuple[float, ...]:
    """0.5,0.99 as numbers. ValueError for anything else."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--latency-quantiles: got {text!r}; expected numbers such as 0.5,0.99") from None


def log_level_from(text: str) -> tuple[str, int]:
    """Triton's log level, and how verbose it is besides. ValueError for a word that is none."""
    level, separator, number = text.partition("=")
    if not separator:
        return level, 0
    if level != "verbose" or not number.isdigit():
        raise ValueError(f"--triton-log-level: got {text!r}; expected error, warning, info or verbose=N")
    return "info", int(number)
