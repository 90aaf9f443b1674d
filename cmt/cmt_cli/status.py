"""`cmt status`: what a server serves."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption


def status(
    url: Annotated[
        str | None,
        typer.Option(help="grpc://host:port or http://host:port; the server running here by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Shows which pipelines answer, from which release, and what each stage has done. Exits with 1 if none answers.

    Example: [bold]cmt status --url http://127.0.0.1:8000[/]
    """
    from rich.table import Table

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
    pipelines = Table("pipeline", "ready", "release", "answered", title="Pipelines", title_justify="left")
    for pipeline in found.pipelines:
        info = pipeline.release
        release = f"{info.release}: {info.preset}, {info.engine} {info.precision}" if info else "-"
        release += "" if info is None or info.trained else " [red]untrained[/]"
        answered = sum(s.success.count for s in pipeline.statistics)
        pipelines.add_row(pipeline.name, "yes" if pipeline.ready else "[red]no[/]", release, str(answered))
    stages = Table("stage", "version", "items", "batches", "compute ms an item", title="Stages", title_justify="left")
    for stage in found.stages:
        mean_ms = stage.compute_infer.total_ns / max(stage.inference_count, 1) / 1e6
        counts = (str(stage.version), str(stage.inference_count), str(stage.execution_count))
        stages.add_row(stage.name, *counts, f"{mean_ms:.2f}")
    console.print(pipelines)
    console.print(stages)
    raise typer.Exit(0 if found.ready else 1)
