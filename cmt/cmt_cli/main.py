"""`cmt`: every verb is a module of its own and loads what it needs when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cmt_cli.bench import bench
from cmt_cli.checkpoint import checkpoint
from cmt_cli.compose import compose
from cmt_cli.corpus import corpus
from cmt_cli.demo import demo
from cmt_cli.deploy import deploy
from cmt_cli.doctor import doctor
from cmt_cli.evaluate import compare, evaluate
from cmt_cli.export import export
from cmt_cli.gateway import gateway, key
from cmt_cli.perf_input import perf_input
from cmt_cli.plan import plan
from cmt_cli.policy import policy
from cmt_cli.predict import predict
from cmt_cli.release import release
from cmt_cli.serve import serve
from cmt_cli.status import status
from cmt_cli.train import train
from cmt_cli.tune import tune
from cmt_cli.upgrade import rollback, upgrade
from cmt_pipeline import __version__
from cmt_pipeline.constants import LOG_FORMAT_VARIABLE, LOG_LEVEL_VARIABLE
from cmt_pipeline.logs import DEFAULT_LEVEL, configure_logging

app = typer.Typer(
    name="cmt",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
#: The verbs of `cmt --help`, by what one wants to do.
PANELS = {
    "Serve": (demo, serve, gateway, predict, status),
    "Model": (export, compose, corpus, train, evaluate, compare),
    "Operate": (upgrade, rollback, deploy, doctor, key),
    "Measure": (bench, tune, plan, perf_input),
}
for panel, verbs in PANELS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
app.add_typer(release, rich_help_panel="Model")
app.add_typer(checkpoint, rich_help_panel="Model")
app.add_typer(policy, rich_help_panel="Serve")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cmt-triton {__version__}")
        raise typer.Exit


@app.callback()
def cmt(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    log_format: Annotated[
        str,
        typer.Option(envvar=LOG_FORMAT_VARIABLE, help="Logs on standard error: text, or json (an object a line)."),
    ] = "text",
    log_level: Annotated[
        str, typer.Option(envvar=LOG_LEVEL_VARIABLE, help="Least level that is logged: debug, info, warning or error.")
    ] = DEFAULT_LEVEL,
) -> None:
    """Serves a Cross-Modal Transformer (image + speech + text -> emotion) on NVIDIA Triton."""
    configure_logging(log_format, log_level)


def main() -> None:
    """Runs the command; an error that has a remedy is one message, not a traceback."""
    from cmt_cli.show import expected_errors, fail

    try:
        app()
    except expected_errors() as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    main()
