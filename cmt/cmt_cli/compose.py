"""`cmt compose`: published classifiers of one modality each -> one checkpoint, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from cmt_export.checkpoint import Checkpoint
    from cmt_pipeline.modality import Modality

SOURCE = "ID of a model hub, pinned by @REVISION, or a folder."


def compose(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    image: Annotated[str | None, typer.Option(help=f"Classifier of faces: {SOURCE}")] = None,
    audio: Annotated[str | None, typer.Option(help=f"Classifier of speech: {SOURCE}")] = None,
    text: Annotated[str | None, typer.Option(help=f"Classifier of text: {SOURCE}")] = None,
    label_set: Annotated[str, typer.Option(help="A label set, such as meld, or labels: calm,angry,sad.")] = "meld",
    names: Annotated[
        list[str] | None,
        typer.Option(help="MODALITY=first,second,…: a classifier's classes, where it has no names of its own."),
    ] = None,
    synonyms: Annotated[
        list[str] | None, typer.Option(help="NAME=LABEL: what a class means; NAME= gives it no place.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Labelled data to fit temperatures and weights on: a folder or a table.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Fuses published classifiers, with their own heads, into a checkpoint for `cmt export`.

    One is enough; modalities without a classifier aren't served.

    Example: [bold]cmt compose --text j-hartmann/emotion-english-distilroberta-base --out composed[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_export.checkpoint import save_checkpoint
    from cmt_export.compose import ComposeOptions
    from cmt_export.compose import compose as run

    given = {"image": image, "audio": audio, "text": text}
    sources: dict[Modality, str] = {m: source for m, source in given.items() if source}  # type: ignore[misc]
    if not sources:
        raise ValueError("got no classifier; name one or more with --image, --audio and --text")
    if out.exists():
        raise FileExistsError(f"{out} exists; name a new folder")
    options = ComposeOptions(sources, label_set, _names(names or ()), dict(map(_pair, synonyms or ())))
    with progress_bar("compose") as progress:
        checkpoint = run(options, progress)
    _print_meanings(checkpoint)
    if calibrate is not None:
        _calibrate(checkpoint, calibrate, State(state))
    save_checkpoint(checkpoint, out)
    console.print(f"written to {out}; `cmt export --checkpoint {out}` makes a release of it", highlight=False)


def _print_meanings(checkpoint: Checkpoint) -> None:
    from rich.table import Table

    from cmt_cli.show import console
    from cmt_export.compose import meanings

    for m, meant in meanings(checkpoint).items():
        encoder = checkpoint.config.encoders[m]
        head = encoder.classifier
        licence = (head.licence if head else "") or "no licence named"
        console.print(f"{m}: {encoder.weights_from} ({licence})", highlight=False, soft_wrap=True)
        table = Table("class", "means")
        for name, label in meant.items():
            table.add_row(name, label or "[yellow]no place[/]")
        console.print(table)
        unknown = [label for label in checkpoint.config.labels if label not in meant.values()]
        if head and head.kind != "dimensional" and unknown:
            console.print(f"it says nothing of {', '.join(unknown)}", highlight=False)


def _calibrate(checkpoint: Checkpoint, data: Path, state: State) -> None:
    from cmt_cli.show import console, progress_bar
    from cmt_cli.train import prepared_data
    from cmt_training.calibration import calibrate
    from cmt_training.data import DataChoice

    with progress_bar("calibrate") as progress:
        prepared = prepared_data(DataChoice(data), checkpoint, checkpoint.config.label_set, state, progress)
        found = calibrate(checkpoint, prepared, progress)
    console.print(
        f"cross-entropy of items held out ({found.items} in five folds, every subset that each has): "
        f"{found.before:.4f} before, {found.after:.4f} after calibration"
        + ("" if found.kept else "; not better, so the classifiers stay as they are"),
        highlight=False,
    )


def _names(given: Sequence[str]) -> dict[Modality, list[str]]:
    from cmt_pipeline.modality import ordered

    found: dict[Modality, list[str]] = {}
    for each in given:
        modality, listed = _pair(each)
        found[ordered([modality])[0]] = [name.strip() for name in listed.split(",")]
    return found


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise ValueError(f"got {given!r}; expected NAME=VALUE")
    return name, value
