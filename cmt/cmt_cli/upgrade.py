"""`cmt upgrade` and `cmt rollback`: from one release to another while requests are answered."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.on_cluster import (
    DEFAULT_NAMESPACE,
    DEFAULT_READY_S,
    ContextOption,
    ForceOption,
    KubernetesOption,
    NamespaceOption,
    Place,
    ReadyOption,
    kubernetes_target,
)
from cmt_cli.signals import Stopped, stop_signal
from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_pipeline.constants import STORE_VARIABLE, TOKEN_VARIABLE
from cmt_rollout.options import Event, Following, Report, RolloutOptions

if TYPE_CHECKING:
    from cmt_rollout.server_target import ServerTarget
    from cmt_rollout.target import Target

ServerOption = Annotated[
    list[str] | None,
    typer.Option("--server", help="URL=REPOSITORY[=METRICS] of a server, repeatable; the one running here by default."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(envvar=TOKEN_VARIABLE, help="Control token of those servers; safer in the environment variable."),
]
PodsStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="URL of the store that the pods pull from; checked before anything starts.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


def upgrade(
    release: Annotated[
        int | None, typer.Argument(help="Release number; the newest of this machine by default.")
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    canary_share: Annotated[
        float,
        typer.Option(help="Share on trial: of the requests of clients that follow canaries, or of pods."),
    ] = RolloutOptions.canary_share,
    canary_s: Annotated[float, typer.Option(help="Seconds on trial; 0 skips the trial.")] = RolloutOptions.canary_s,
    watch_s: Annotated[
        float, typer.Option(help="Seconds it is watched once it has all traffic.")
    ] = RolloutOptions.watch_s,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the old release loaded, for an instant rollback.")] = False,
    requests: Annotated[
        Path | None, typer.Option(help="Folder of example files, like your users', to compare both releases on.")
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Number of requests to compare both releases on.")
    ] = RolloutOptions.samples,
    max_flips: Annotated[
        float, typer.Option(help="Most answers whose label may change, as a share.")
    ] = RolloutOptions.max_flips,
    max_distance: Annotated[
        float, typer.Option(help="Largest mean distance of probabilities, 0 to 1.")
    ] = RolloutOptions.max_distance,
    max_slowdown: Annotated[
        float, typer.Option(help="Most that the median latency may grow, as a factor.")
    ] = RolloutOptions.max_slowdown,
    max_errors: Annotated[
        float, typer.Option(help="Most requests that may fail, as a share.")
    ] = RolloutOptions.max_errors,
    kubernetes: KubernetesOption = False,
    context: ContextOption = None,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    store: PodsStoreOption = None,
    ready_timeout_s: ReadyOption = DEFAULT_READY_S,
    force_conflicts: ForceOption = False,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Moves servers or pods to another release without losing a request.

    A step that fails rolls back to the release before, and says why.

    Example: [bold]cmt upgrade 2 --canary-share 0.1 --canary-s 60 --keep[/]
    """
    from cmt_release.release import open_release
    from cmt_rollout.rollout import upgrade as run

    options = RolloutOptions(
        canary_share=canary_share,
        canary_s=canary_s,
        watch_s=watch_s,
        keep=keep,
        requests=requests,
        samples=samples,
        max_flips=max_flips,
        max_distance=max_distance,
        max_slowdown=max_slowdown,
        max_errors=max_errors,
    )
    place = Place(context, namespace, ready_timeout_s, force_conflicts, store) if kubernetes else None
    if place and keep:
        raise ValueError("got --keep with --kubernetes; pods of two releases aren't kept beside each other")
    chosen = open_release(State(state).releases, release)
    with reporting(as_json) as shown:
        report = Following(shown)
        with chosen_targets(State(state), server, token, place, canary_share, report.say) as targets:
            run(targets, chosen, options, report)


def rollback(
    server: ServerOption = None,
    token: TokenOption = None,
    kubernetes: KubernetesOption = False,
    context: ContextOption = None,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    ready_timeout_s: ReadyOption = DEFAULT_READY_S,
    force_conflicts: ForceOption = False,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Moves servers or pods back to the release before.

    It is instant on a server that still has that release loaded (`cmt upgrade --keep`).

    Example: [bold]cmt rollback[/]
    """
    from cmt_release.release import open_release
    from cmt_rollout.rollout import rollback as run

    releases = State(state).releases
    place = Place(context, namespace, ready_timeout_s, force_conflicts) if kubernetes else None
    with reporting(as_json) as shown:
        report = Following(shown)
        with chosen_targets(State(state), server, token, place, 0.0, report.say) as targets:
            run(targets, lambda number: open_release(releases, number), report)


@contextlib.contextmanager
def chosen_targets(
    state: State,
    servers: list[str] | None,
    token: str | None,
    place: Place | None,
    canary_share: float,
    say: Callable[[str], None],
) -> Iterator[Sequence[Target]]:
    """The pods of a cluster where one is named, else servers. ValueError for both."""
    if place and servers:
        raise ValueError("got --server with --kubernetes; expected one of them")
    if place:
        with kubernetes_target(place, state.releases, canary_share, say) as pods:
            yield pods
    else:
        with targets_of(state, servers, token) as found:
            yield found


@contextlib.contextmanager
def targets_of(state: State, servers: list[str] | None, token: str | None) -> Iterator[list[ServerTarget]]:
    """The servers named, else the one that runs on this state. ValueError for a name that isn't URL=REPOSITORY."""
    from cmt_rollout.server_target import ServerTarget
    from cmt_server.errors import ServerError
    from cmt_server.repository import Repository

    with contextlib.ExitStack() as stack:
        targets = []
        for given in servers or []:
            url, separator, rest = given.partition("=")
            folder, _, metrics = rest.partition("=")
            if not separator or not Path(folder, "stages").is_dir():
                raise ValueError(
                    f"--server: got {given!r}; expected URL=REPOSITORY, such as "
                    "grpc://127.0.0.1:8001=.cmt/repository, with the folder that the server reads"
                )
            targets.append(ServerTarget(url, Repository(Path(folder)), token, metrics_url=metrics or None))
        if not servers:
            running = state.running()
            if running is None:
                raise ServerError(f"no server runs on {state.root}; start one with `cmt serve`, or name it: --server")
            targets.append(
                ServerTarget(
                    running.grpc_url,
                    Repository(state.repository),
                    running.control_token,
                    metrics_url=running.metrics_url,
                )
            )
        for target in targets:
            stack.callback(target.close)
        yield targets


@contextlib.contextmanager
def reporting(as_json: bool) -> Iterator[Report]:
    """Shows steps as they come: a line each, with what is under way below them on a terminal.

    The first signal to end (of a terminal that closes, too) leads back what was begun; Ended is raised after that.
    """
    from cmt_rollout.errors import Ended

    try:
        with stop_signal(signal.SIGHUP) as stop, stop.at_once(), _shown(as_json) as report:
            yield report
    except Stopped:
        raise Ended("a signal ended it") from None


@contextlib.contextmanager
def _shown(as_json: bool) -> Iterator[Report]:
    from cmt_cli.show import console

    if as_json:
        yield _print_line
        return
    with console.status("") as status:

        def show(event: Event) -> None:
            if event.state in ("started", "progress"):
                status.update(f"{event.step} {event.target} {event.detail}")
                return
            mark = "[green]✓[/]" if event.state == "passed" else "[bold red]✗[/]"
            console.print(f"{mark} {event.step:<10}{event.seconds:7.1f} s  ", end="", highlight=False)
            console.print(event.detail, markup=False, highlight=False)

        yield show


def _print_line(event: Event) -> None:
    try:
        typer.echo(json.dumps(asdict(event)))
    except BrokenPipeError:  # what is still buffered must not fail once more when the process ends
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
