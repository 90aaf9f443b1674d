"""`cmt status`: what a server serves."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from rich.table import Table

    from cmt_client import ServerStatus

METRICS_TIMEOUT_S = 2.0
MAX_METRICS_BYTES = 8 << 20
PENDING = re.compile(r'^nv_inference_pending_request_count\{model="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)


def status(
    url: Annotated[
        str | None,
        typer.Option(help="grpc://host:port or http://host:port; the server running here by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Shows what a server serves: its releases, pipelines, stages and queues.

    Exits with 1 if no pipeline is ready.

    Example: [bold]cmt status --url http://127.0.0.1:8000[/]
    """
    from cmt_cli.show import console
    from cmt_client import connect, server_status

    transport = connect(State(state).url(url))
    try:
        found = server_status(transport)
    finally:
        transport.close()
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        raise typer.Exit(0 if found.ready else 1)
    for name, value in _summary(found, State(state), url):
        console.print(f"[bold]{name:<9}[/]{value}", highlight=False)
    console.print(_pipeline_table(found))
    console.print(_stage_table(found))
    raise typer.Exit(0 if found.ready else 1)


def _summary(found: ServerStatus, state: State, url: str | None) -> Iterator[tuple[str, str]]:
    """What an operator wants first; what lies in the repository and waits in queues, of a server on this state."""
    ready = sum(pipeline.ready for pipeline in found.pipelines)
    live = " and ".join(f"release {number}" for number in found.live) or "none"
    yield "live", f"{live}, {ready} of {len(found.pipelines)} pipelines ready"
    if found.trial is not None:
        number = found.trial.release.release if found.trial.release else "?"
        yield "on trial", f"release {number}, {found.trial.canary_share:.0%} of following clients' requests"
    running = state.running()
    if url is not None or running is None:
        return
    if (before := _before(state)) is not None:
        yield "before", before
    waiting = pending_requests(running.metrics_url)
    if waiting is not None:
        busy = ", ".join(f"{name} {count}" for name, count in waiting.items() if count)
        yield "waiting", f"{sum(waiting.values())} requests in queues" + (f" ({busy})" if busy else "")


def _before(state: State) -> str | None:
    from cmt_server.repository import Repository

    repository = Repository(state.repository)
    live = repository.live()
    if live is None or live.previous is None:
        return None
    loaded = live.previous in repository.manifests()
    return f"release {live.previous}, " + ("still loaded: `cmt rollback` is instant" if loaded else "retired")


def pending_requests(metrics_url: str) -> dict[str, int] | None:
    """Requests that wait for each model to run them, from Triton's metrics; None if those can't be had."""
    try:
        with urllib.request.urlopen(metrics_url, timeout=METRICS_TIMEOUT_S) as response:  # noqa: S310
            text = response.read(MAX_METRICS_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None
    waiting: dict[str, int] = {}
    for model, count in PENDING.findall(text):
        waiting[model] = waiting.get(model, 0) + int(float(count))
    return waiting


def _pipeline_table(found: ServerStatus) -> Table:
    from rich.table import Column, Table

    table = Table(
        Column("pipeline", no_wrap=True),
        "ready",
        "release",
        "answered",
        "refused",
        title="Pipelines",
        title_justify="left",
    )
    for pipeline in found.pipelines:
        info = pipeline.release
        release = f"{info.release}: {info.preset}, {info.engine} {info.precision}" if info else "-"
        release += "" if info is None or info.trained else " [red]untrained[/]"
        counts = (sum(s.success.count for s in pipeline.statistics), sum(s.fail.count for s in pipeline.statistics))
        table.add_row(pipeline.name, "yes" if pipeline.ready else "[red]no[/]", release, *map(str, counts))
    return table


def _stage_table(found: ServerStatus) -> Table:
    from rich.table import Column, Table

    table = Table(
        Column("stage", no_wrap=True),
        "version",
        "items",
        "batches",
        "compute ms an item",
        title="Stages",
        title_justify="left",
    )
    for stage in found.stages:
        mean_ms = stage.compute_infer.total_ns / max(stage.inference_count, 1) / 1e6
        counts = (str(stage.version), str(stage.inference_count), str(stage.execution_count))
        table.add_row(stage.name, *counts, f"{mean_ms:.2f}")
    return table
