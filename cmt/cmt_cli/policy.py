"""`cmt policy`: what an application does about emotions over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmt_session import Step

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]

policy = typer.Typer(
    name="policy",
    help="Checks policies, and tries them on recorded sessions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@policy.command()
def check(
    name: Annotated[str, typer.Argument(metavar="POLICY", help="A YAML file, or the name of a shipped policy.")],
    label_set: Annotated[
        str | None, typer.Option(help="Labels of the releases that will answer: a set's name, or names with commas.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Checks a policy, and says what in it may not be meant so.

    Exits with 2 for a policy that can't work.

    Example: [bold]cmt policy check tutoring --label-set meld[/]
    """
    from cmt_cli.show import console
    from cmt_session.policy_file import describe, open_policy, warnings_of

    read = open_policy(name)
    warnings = warnings_of(read, label_set)
    if as_json:
        typer.echo(json.dumps({**describe(read), "warnings": warnings}))
        return
    told = f"{read.name} ({read.digest}): {len(read.rules)} rules, for the context {read.context}"
    for line in (told, *(f"warning: {warning}" for warning in warnings)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@policy.command()
def simulate(
    session: Annotated[
        Path,
        typer.Argument(metavar="SESSION", help="Observations as .jsonl, or a .json of `cmt predict --json`."),
    ],
    name: Annotated[
        str, typer.Option("--policy", help="A YAML file, or the name of a shipped policy.")
    ] = "customer_service",
    context: Annotated[
        str | None, typer.Option(help="Where it is used, which decides the modalities; the policy's own by default.")
    ] = None,
    exemption: Annotated[
        str | None, typer.Option(help="medical or safety: a reason that the law makes an exception for.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the session as a time line: .png, .svg or .pdf.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each event's reading and decision as a line of JSON instead.")
    ] = False,
) -> None:
    """Says what a policy would have done in a recorded session, and why.

    Example: [bold]cmt policy simulate cmt/cmt_cli/samples/call.jsonl --policy customer_service[/]
    """
    from cmt_session.context import ruling
    from cmt_session.policy_file import open_policy
    from cmt_session.session import Session
    from cmt_session.session_file import read_session
    from cmt_session.timeline import check_matplotlib, draw

    if picture is not None:
        check_matplotlib()
    chosen = open_policy(name)
    where = ruling(context or chosen.context, exemption or chosen.exemption)
    tracked = Session(chosen, chosen.options(where))
    steps = [tracked.observe(seen) for seen in read_session(session)]
    if picture is not None:
        draw(steps, picture, f"{session.name}: {chosen.name}, context {where.rule.context}")
    if as_json:
        for step in steps:
            typer.echo(json.dumps(step.to_json()))
        return
    _show(steps, where.reason)


def _show(steps: list[Step], reason: str) -> None:
    """The actions, how long each state held, and what didn't count."""
    from collections import Counter

    from rich.table import Table

    from cmt_cli.show import console

    table = Table("at s", "state", "action", "rule", "reason", title="Actions", title_justify="left")
    for step in steps:
        decision = step.decision
        if decision is not None and decision.kind == "act":
            action = f"{decision.action} (to {decision.hand_off_to})" if decision.hand_off_to else str(decision.action)
            rule = f"{decision.rule}, escalated" if decision.why == "escalated" else str(decision.rule)
            table.add_row(f"{step.reading.clock_s:.1f}", decision.state, action, rule, decision.reason)
    console.print(table)
    outcomes = Counter(step.reading.outcome for step in steps)
    refused = Counter(why for step in steps for why in step.reading.refused)
    told = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
    why = ", ".join(f"{name} {count}" for name, count in refused.most_common())
    console.print(f"{len(steps)} events: {told}" + (f" ({why})" if why else ""), markup=False, highlight=False)
    if "not_allowed" in refused:
        console.print(f"not allowed: {reason}", markup=False, highlight=False, soft_wrap=True)
