"""`cmt checkpoint`: checkpoints between machines, through the store that has the releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.release import StoreOption

if TYPE_CHECKING:
    from cmt_release.objects import Objects

NameArgument = Annotated[str, typer.Argument(help="Name of the checkpoint in the store.")]

checkpoint = typer.Typer(
    name="checkpoint",
    help="Lists, sends and fetches checkpoints, which trainings make.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@checkpoint.command()
def push(folder: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")], store: StoreOption) -> None:
    """Sends a checkpoint to a store, under its folder's name.

    Example: [bold]cmt checkpoint push runs/mini --store s3://models/emotion[/]
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: got no config.json in it; expected what `cmt train` writes")
    push_to(push_target(store, folder, resumed=True), folder)


@checkpoint.command()
def pull(
    name: NameArgument,
    store: StoreOption,
    out: Annotated[Path | None, typer.Option(help="Folder to make; ./NAME by default.", show_default=False)] = None,
) -> None:
    """Fetches a checkpoint from a store and checks every file.

    Example: [bold]cmt checkpoint pull mini --store s3://models/emotion[/]
    """
    fetch(store, name, out or Path(name))


@checkpoint.command("list")
def list_checkpoints(store: StoreOption) -> None:
    """Lists the checkpoints of a store.

    Example: [bold]cmt checkpoint list --store s3://models/emotion[/]
    """
    from cmt_release.checkpoints import stored_checkpoints
    from cmt_release.objects import open_objects

    for name in stored_checkpoints(open_objects(store)):
        typer.echo(name)


def push_target(store: str | None, out: Path, *, resumed: bool) -> Objects:
    """The store that a checkpoint goes to. resumed: whether its training has made it, and may have sent it.

    ValueError where there is none, or where a training that begins would end with a name that is given.
    """
    from cmt_release.checkpoints import checked_name, stored_checkpoints
    from cmt_release.objects import open_objects

    if not store:
        raise ValueError("got --push and no store; name one with --store or CMT_STORE")
    objects, name = open_objects(store), checked_name(out.name)
    if not resumed and name in stored_checkpoints(objects):
        raise ValueError(
            f"{objects.url} has a checkpoint {name} already, and a name is given once; take another for OUT"
        )
    return objects


def push_to(objects: Objects, folder: Path) -> None:
    from cmt_cli.show import console, progress_bar
    from cmt_release.checkpoints import push_checkpoint

    with progress_bar("push") as progress:
        new = push_checkpoint(objects, folder, folder.name, progress)
    console.print(f"{folder.name} is in {objects.url}{'' if new else ' already'}", highlight=False)


def fetch(store: str, name: str, out: Path) -> None:
    from cmt_cli.show import console, progress_bar
    from cmt_release.checkpoints import pull_checkpoint
    from cmt_release.objects import open_objects

    with progress_bar("pull") as progress:
        pull_checkpoint(open_objects(store), name, out, progress)
    console.print(f"{name} is in {out}", highlight=False)
