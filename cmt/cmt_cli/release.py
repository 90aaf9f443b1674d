"""`cmt release`: releases between machines, through a store at a URL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_pipeline.constants import STORE_VARIABLE

if TYPE_CHECKING:
    from cmt_release.manifest import Manifest, ReleaseError

STORE_HELP = "URL of a store: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"

StoreOption = Annotated[str, typer.Option("--store", envvar=STORE_VARIABLE, help=f"{STORE_HELP}.")]
MaybeStoreOption = Annotated[
    str | None,
    typer.Option("--store", envvar=STORE_VARIABLE, help=f"{STORE_HELP}; without one, this machine's releases."),
]
NumberArgument = Annotated[
    int | None, typer.Argument(help="Release number; the newest by default.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

release = typer.Typer(
    name="release",
    help="Lists, shows, sends, fetches, verifies and removes releases, here or in a store.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@release.command()
def push(store: StoreOption, number: NumberArgument = None, state: StateOption = DEFAULT_STATE) -> None:
    """Sends a release of this machine to a store; only files that the store lacks are sent.

    Example: [bold]cmt release push --store s3://models/emotion[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_release.release import open_release
    from cmt_release.store import open_store

    there, chosen = open_store(store), open_release(State(state).releases, number)
    with progress_bar("push") as progress:
        done = there.push(chosen, progress)
    console.print(
        f"release {chosen.number} ({chosen.digest[:12]}) is in {there.url}; "
        f"files sent: {len(done.sent)} ({_megabytes(done.sent_bytes)}), there already: {done.shared}",
        highlight=False,
    )


@release.command()
def pull(store: StoreOption, number: NumberArgument = None, state: StateOption = DEFAULT_STATE) -> None:
    """Fetches a release from a store and checks every file.

    Example: [bold]cmt release pull 3 --store s3://models/emotion[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_release.store import open_store

    with progress_bar("pull") as progress:
        pulled = open_store(store).pull(State(state).releases, number, progress)
    console.print(f"release {pulled.number} ({pulled.digest[:12]}) is in {pulled.folder}", highlight=False)


@release.command("list")
def list_releases(
    store: MaybeStoreOption = None, as_json: JsonOption = False, state: StateOption = DEFAULT_STATE
) -> None:
    """Lists releases, oldest first.

    Example: [bold]cmt release list --store s3://models/emotion[/]
    """
    from rich.table import Table

    from cmt_cli.show import console

    where, found = _releases(store, State(state))
    rows = [_row(number, manifest) for number, manifest in found.items()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("release", "digest", "what", "label set", "size", title=f"Releases in {where}", title_justify="left")
    for row in rows:
        if "error" in row:
            table.add_row(str(row["release"]), "-", f"[red]unreadable[/]: {row['error'][:80]}", "-", "-")
            continue
        what = f"{row['preset']}, {row['engine']} {row['precision']}" + ("" if row["trained"] else " [red]untrained[/]")
        size = _megabytes(row["size_bytes"])
        table.add_row(str(row["release"]), row["digest"][:12], what, row["label_set"], size)
    console.print(table)


@release.command()
def show(
    number: NumberArgument = None,
    store: MaybeStoreOption = None,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Shows what a release is made of: stages, digests, versions, parity.

    Example: [bold]cmt release show 3[/]
    """
    from rich.table import Table

    from cmt_cli.show import console, parity_table

    manifest = _manifest(number, store, State(state))
    if as_json:
        typer.echo(json.dumps({"digest": manifest.digest, **json.loads(manifest.to_json())}))
        return
    row = _row(manifest.number, manifest)
    table = Table(title=f"Release {manifest.number}", title_justify="left", show_header=False)
    for name in ("digest", "preset", "engine", "precision", "label_set", "trained"):
        table.add_row(name.replace("_", " "), str(row[name]))
    table.add_row("modalities", ", ".join(manifest.info.modalities))
    for weights in manifest.published:
        licence = weights.licence or "no licence named"
        table.add_row(f"{weights.modality} from", f"{weights.source} ({licence}, {weights.sha256[:12]})")
    table.add_row("labels", ", ".join(manifest.info.labels))
    table.add_row("files", f"{len(manifest.files)}, {_megabytes(row['size_bytes'])}")
    table.add_row("stages", ", ".join(f"{name} {stage.version}" for name, stage in manifest.stages.items()))
    table.add_row("golden", f"{len(manifest.golden)} answers, within {manifest.golden_tolerance:g}")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    console.print(table)
    if manifest.parity:
        console.print(parity_table(manifest.parity))


@release.command()
def verify(number: NumberArgument = None, store: MaybeStoreOption = None, state: StateOption = DEFAULT_STATE) -> None:
    """Reads every file of one release, or of all, and compares its SHA-256.

    Exits with 1 where one differs.

    Example: [bold]cmt release verify --store s3://models/emotion[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_release.release import open_release, release_numbers
    from cmt_release.store import open_store

    with progress_bar("verify") as progress:
        if store:
            checked = open_store(store).verify(number, progress).releases
        else:
            folder = State(state).releases
            checked = tuple(release_numbers(folder)) if number is None else (number,)
            for done, each in enumerate(checked):
                progress(f"release {each}", done / len(checked))
                open_release(folder, each).verify()
    console.print(f"sound: {_named(checked)}", highlight=False)


@release.command()
def prune(
    numbers: Annotated[list[int] | None, typer.Argument(help="Releases to remove.", show_default=False)] = None,
    keep: Annotated[int | None, typer.Option(help="Remove all but this many of the newest.", min=1)] = None,
    store: MaybeStoreOption = None,
    grace_s: Annotated[
        float,
        typer.Option(help="Keep files of a store younger than this many seconds, as a push may be under way.", min=0),
    ] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Removes releases, and files that no release refers to.

    Releases that this machine serves stay.

    Example: [bold]cmt release prune --keep 5 --dry-run[/]
    """
    from cmt_cli.show import console
    from cmt_release.prune import Selection, prune_folder, prune_store
    from cmt_release.store import open_store
    from cmt_server.repository import Repository

    here = State(state)
    if store:
        chosen = Selection(keep, numbers or ())
        gone = prune_store(open_store(store), chosen, grace_s=grace_s, dry_run=dry_run)
    else:
        chosen = Selection(keep, numbers or (), Repository(here.repository).manifests())
        gone = prune_folder(here.releases, chosen, dry_run=dry_run)
    for name in gone.other:
        console.print(name, highlight=False)
    freed = f" ({_megabytes(gone.size_bytes)})" if gone.size_bytes else ""
    console.print(
        f"{'would remove' if dry_run else 'removed'} from {store or here.releases}: {_named(gone.releases)}; "
        f"files and drafts that none refers to: {len(gone.other)}{freed}",
        highlight=False,
    )


def _releases(store: str | None, state: State) -> tuple[str, Mapping[int, Manifest | ReleaseError]]:
    """Where the releases are, and each of them by number; the error where a manifest can't be read."""
    from cmt_release.release import ReleaseError, open_release, release_numbers
    from cmt_release.store import open_store

    if store:
        there = open_store(store)
        return there.url, there.releases()
    found: dict[int, Manifest | ReleaseError] = {}
    for number in release_numbers(state.releases):
        try:
            found[number] = open_release(state.releases, number).manifest
        except ReleaseError as error:
            found[number] = error
    return str(state.releases), found


def _manifest(number: int | None, store: str | None, state: State) -> Manifest:
    from cmt_release.release import open_release
    from cmt_release.store import open_store

    return open_store(store).show(number) if store else open_release(state.releases, number).manifest


def _row(number: int, manifest: Manifest | ReleaseError) -> dict[str, Any]:
    if isinstance(manifest, Exception):
        return {"release": number, "error": str(manifest)}
    info = manifest.info
    return {
        "release": number,
        "digest": manifest.digest,
        "preset": info.preset,
        "engine": info.engine,
        "precision": info.precision,
        "label_set": info.label_set,
        "trained": info.trained,
        "size_bytes": sum(manifest.sizes.values()),
    }


def _named(numbers: tuple[int, ...]) -> str:
    return f"release{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" if numbers else "no release"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
