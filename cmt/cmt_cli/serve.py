"""`cmt serve`: a release on a tritonserver of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, RunningServer, State, StateOption
from cmt_pipeline.constants import GRPC_PORT, HTTP_PORT, LOOPBACK, METRICS_PORT, TOKEN_VARIABLE

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
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need it said.")] = LOOPBACK,
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
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Serves a release until Ctrl-C or SIGTERM, then finishes what is in flight and stops.

    Example: [bold]cmt serve --release 1 --limit max_audio_s=8[/]
    """
    from cmt_engine.engine import ENGINES
    from cmt_pipeline.triton_config import DEFAULT_TUNING
    from cmt_server.repository import InstallOptions
    from cmt_server.server import ServerOptions, new_token
    from cmt_server.supervise import Supervisor
    from cmt_server.tuning import read_tuning

    chosen = State(state)
    served = chosen_release(chosen, release)
    options = ServerOptions(
        repository=chosen.repository.absolute(),
        work=chosen.server.absolute(),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        model_config_name=model_config_name or ENGINES[served.manifest.info.engine].variant,
        drain_timeout_s=drain_timeout_s,
        control_token=os.environ.get(TOKEN_VARIABLE) or new_token(),
    )
    install = InstallOptions(limits_from(limit), read_tuning(tuning) if tuning else DEFAULT_TUNING)
    with stop_signal() as stopped, serving(chosen, served, options, install) as server:
        _announce_table(server)
        supervisor = Supervisor(server, _say)
        while not stopped.wait(WATCH_S):
            supervisor.look()
        _say("draining: requests in flight finish, new ones are refused")


def chosen_release(state: State, number: int | None) -> Release:
    """The release asked for; else the one that was live here last, which an upgrade may have chosen; else the newest.

    A release that an upgrade rejected is never served because it is the newest.
    """
    from cmt_release.release import open_release, release_numbers
    from cmt_server.repository import Repository

    live = Repository(state.repository).live() if number is None else None
    newer = [n for n in release_numbers(state.releases) if live and n > live.release]
    if live and newer:
        _say(
            f"serving release {live.release}, as last time; {', '.join(map(str, newer))} newer: --release, cmt upgrade"
        )
    return open_release(state.releases, number if live is None else live.release)


@contextlib.contextmanager
def serving(state: State, release: Release, options: ServerOptions, install: InstallOptions) -> Iterator[TritonServer]:
    """A server on this release, announced in the state folder while it runs. Only one at a time for a state folder."""
    from cmt_cli.show import progress_bar
    from cmt_server.repository import Repository
    from cmt_server.server import TritonServer

    with only_one(state.root / "serve.lock"):
        repository = Repository(options.repository)
        with repository.lock():
            repository.install(release, install)
        server = TritonServer(options)
        with progress_bar("serve") as progress:
            server.start(lambda ready, total: progress("waiting until every pipeline answers", ready / total))
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


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, from now on."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        return Limits.from_text(chosen)
    except ValueError as error:
        raise ValueError(f"--limit: got {' '.join(pairs or [])}; expected whole numbers or seconds ({error})") from None


def _announce_table(server: TritonServer) -> None:
    from cmt_cli.show import console

    console.print(f"gRPC  {server.grpc_url}", highlight=False)
    console.print(f"HTTP  {server.http_url}", highlight=False)
    console.print(f"log   {server.log}", highlight=False)
    console.print("Ctrl-C drains and stops.", highlight=False)


def _say(text: str) -> None:
    LOG.info(text)
