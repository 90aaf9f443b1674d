"""`cmt`: every verb is a module of its own and loads what it needs when it runs."""

from __future__ import annotations

import sys

import typer

from cmt_cli.bench import bench
from cmt_cli.corpus import corpus
from cmt_cli.demo import demo
from cmt_cli.deploy import deploy
from cmt_cli.doctor import doctor
from cmt_cli.evaluate import compare, evaluate
from cmt_cli.export import export
from cmt_cli.plan import plan
from cmt_cli.predict import predict
from cmt_cli.release import release
from cmt_cli.serve import serve
from cmt_cli.status import status
from cmt_cli.train import train
from cmt_cli.tune import tune
from cmt_cli.upgrade import rollback, upgrade

app = typer.Typer(
    name="cmt",
    help="Serves a Cross-Modal Transformer (image + speech + text -> emotion) on NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for verb in (
    demo,
    export,
    serve,
    predict,
    status,
    upgrade,
    rollback,
    deploy,
    bench,
    tune,
    plan,
    doctor,
    corpus,
    train,
    evaluate,
    compare,
):
    app.command()(verb)
app.add_typer(release)


def main() -> None:
    """Runs the command; an error that has a remedy is one message, not a traceback."""
    from cmt_cli.show import expected_errors, fail

    try:
        app()
    except expected_errors() as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    main()
