"""`cmt corpus`: makes the generated corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmt_training.generate.options import CorpusOptions

DEFAULTS = CorpusOptions()


def corpus(
    folder: Annotated[Path, typer.Argument(help="Folder to create; it must not exist, or be empty.")] = Path("corpus"),
    items: Annotated[int, typer.Option(help="Number of examples, all splits together.")] = DEFAULTS.items,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds and options give equal corpora.")] = DEFAULTS.seed,
    missing_rate: Annotated[
        float, typer.Option(help="Share of examples that lack a modality, for each modality.")
    ] = DEFAULTS.missing_rate,
    noisy_rate: Annotated[
        float, typer.Option(help="Share of examples with noise in a modality, for each modality.")
    ] = DEFAULTS.noisy_rate,
    noise_level: Annotated[float, typer.Option(help="Strength of that noise, 0 to 1.")] = DEFAULTS.noise_level,
    contradiction_rate: Annotated[
        float, typer.Option(help="Share of examples with an emotion in which one modality shows another.")
    ] = DEFAULTS.contradiction_rate,
    interplay_rate: Annotated[
        float, typer.Option(help="Share of examples with an emotion whose label no modality tells alone.")
    ] = DEFAULTS.interplay_rate,
    image_side_px: Annotated[int, typer.Option(help="Side of the square images in pixels.")] = DEFAULTS.image_side_px,
    processes: Annotated[int | None, typer.Option(help="Parallel processes; one for each core by default.")] = None,
) -> None:
    """Generates a labelled corpus of drawn faces, synthesised speech and sentences.

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
        interplay_rate=interplay_rate,
        image_side_px=image_side_px,
    )
    with progress_bar("corpus") as progress:
        made = generate_corpus(folder, options, progress, processes)
    table = Table("split", "examples", "people", "noisy", "contradicting", "interplay", "incomplete")
    for split in SPLITS:
        examples = made.of(split)
        tagged = [
            sum(tag in example.tags for example in examples) for tag in ("noisy", "contradicts", "interplay", "missing")
        ]
        people = len({example.speaker for example in examples})
        table.add_row(split, *map(str, (len(examples), people, *tagged)))
    console.print(table)
    console.print(f"{made.name} corpus written to {folder}", highlight=False, markup=False)
