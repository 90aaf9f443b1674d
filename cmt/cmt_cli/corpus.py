"""`cmt corpus`: makes the generated corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmt_training.generate.options import CorpusOptions

DEFAULTS = CorpusOptions()


def corpus(
    folder: Annotated[Path, typer.Argument(help="Made by this; it must not exist, or be empty.")] = Path("corpus"),
    items: Annotated[int, typer.Option(help="Examples of all splits together.")] = DEFAULTS.items,
    seed: Annotated[int, typer.Option(help="Equal seeds and options give equal corpora.")] = DEFAULTS.seed,
    missing_rate: Annotated[float, typer.Option(help="Of each modality of an example.")] = DEFAULTS.missing_rate,
    noisy_rate: Annotated[float, typer.Option(help="Of each modality of an example.")] = DEFAULTS.noisy_rate,
    noise_level: Annotated[float, typer.Option(help="How strong that noise is, 0 to 1.")] = DEFAULTS.noise_level,
    contradiction_rate: Annotated[
        float, typer.Option(help="Of examples with an emotion: one modality shows another one.")
    ] = DEFAULTS.contradiction_rate,
    image_side_px: Annotated[int, typer.Option(help="Of the square images.")] = DEFAULTS.image_side_px,
    processes: Annotated[int | None, typer.Option(help="That work at once; one for each core by default.")] = None,
) -> None:
    """Makes a tri-modal corpus: drawn faces, synthesised speech, sentences of a grammar, with their emotions.

    People, faces, voices and sentences are disjoint between training, validation and test. It is no measure of how
    well anything reads real people.

    Example: [bold]cmt corpus corpus --items 4000 --seed 0[/]
    """
    from rich.table import Table

    from cmt_cli.show import console, progress_bar
    from cmt_training.examples import SPLITS
    from cmt_training.generate.corpus import generate_corpus

    options = CorpusOptions(
        items=items,
        seed=seed,
        missing_rate=missing_rate,
        noisy_rate=noisy_rate,
        noise_level=noise_level,
        contradiction_rate=contradiction_rate,
        image_side_px=image_side_px,
    )
    with progress_bar("corpus") as progress:
        made = generate_corpus(folder, options, progress, processes)
    table = Table("split", "examples", "people", "noisy", "contradicting", "incomplete")
    for split in SPLITS:
        examples = made.of(split)
        tagged = [sum(tag in example.tags for example in examples) for tag in ("noisy", "contradicts", "missing")]
        people = len({example.speaker for example in examples})
        table.add_row(split, *map(str, (len(examples), people, *tagged)))
    console.print(table)
    console.print(f"{made.name} corpus written to {folder}", highlight=False, markup=False)
