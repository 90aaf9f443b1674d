"""`cmt doctor`: known traps in Triton repositories and servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_pipeline.constants import TOKEN_VARIABLE

if TYPE_CHECKING:
    from cmt_server.doctor.diagnosis import Diagnosis
    from cmt_server.doctor.running import RunningTriton


def doctor(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Triton model repositories, taken together as one."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="http://host:port of a running Triton.")] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar=TOKEN_VARIABLE, help="Token of its restricted APIs; safer in the environment variable."),
    ] = None,
    token_header: Annotated[
        str | None, typer.Option(help="Header that carries the token; by default the one that `cmt serve` uses.")
    ] = None,
    triton_version: Annotated[
        str | None,
        typer.Option(help="Triton version, such as 2.51: leave out traps of others; by default the server's own."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List every rule instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Finds known traps in any Triton model repository and any running Triton.

    Without a folder or URL it looks at what this machine serves. Exits with 1 if it finds errors.

    Example: [bold]cmt doctor model_repository --triton-version 2.51[/]
    """
    from cmt_pipeline.constants import CONTROL_HEADER
    from cmt_server.binary import triton_version as parse_version
    from cmt_server.doctor.diagnosis import diagnose
    from cmt_server.doctor.environment import stub_environment, tensorrt_here
    from cmt_server.doctor.running import RunningTriton

    if rules:
        _list_rules(as_json)
        return
    version = parse_version(triton_version) if triton_version else None
    chosen, server = list(folders or []), RunningTriton(url, token, token_header or CONTROL_HEADER) if url else None
    if not chosen and server is None:
        chosen, server = _served_here(State(state))
    seen = server.observe() if server else None
    found = diagnose(chosen, seen, version, stub_environment(), tensorrt_here())
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _show(found)
    raise typer.Exit(1 if found.count("error") or (strict and found.findings) else 0)


def _served_here(state: State) -> tuple[list[Path], RunningTriton | None]:
    """The repository and the server of a state folder. ValueError without either."""
    from cmt_server.doctor.running import RunningTriton

    running = state.running()
    folders = [state.repository] if state.repository.is_dir() else []
    if not folders and running is None:
        raise ValueError(f"nothing is served from {state.root}; name the folder of a repository, or a --url")
    return folders, RunningTriton(running.http_url, running.control_token) if running else None


def _show(found: Diagnosis) -> None:
    """Findings, grouped by rule; its reason and remedy once."""
    from rich.markup import escape

    from cmt_cli.show import console

    last = None
    for one in found.findings:
        if (one.rule, one.severity) != last:
            colour = "red" if one.severity == "error" else "yellow"
            console.print(f"[bold {colour}]{one.severity}[/] [bold]{one.rule.id}[/]", highlight=False)
            console.print(f"  why:  {escape(one.rule.why)}", highlight=False)
            console.print(f"  fix: {escape(one.rule.fix)}", highlight=False)
            last = one.rule, one.severity
        about = f"{one.model}: " if one.model else ""
        console.print(f"  - {one.where}: {about}{one.what}", markup=False, highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    version = f"Triton {'.'.join(map(str, found.version))}" if found.version else "every Triton version"
    counts = f"errors: {found.count('error')}, warnings: {found.count('warning')}, models: {found.models}"
    console.print(f"{counts}; by the rules for {version}", highlight=False)


def _list_rules(as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cmt_cli.show import console
    from cmt_server.doctor.diagnosis import RULES

    if as_json:
        listed = [{**vars(rule), "versions": str(rule.versions)} for rule in RULES]
        typer.echo(json.dumps(listed))
        return
    table = Table("rule", "why", "fix", show_lines=True)
    for rule in RULES:
        name = f"[bold]{rule.id}[/]\n{rule.severity}\nTriton: {rule.versions}"
        table.add_row(name, escape(rule.why), escape(rule.fix))
    table.columns[0].no_wrap = True
    console.print(table)
