"""`cmt train`: a data set's folder -> a calibrated checkpoint."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_training.options import TrainOptions

if TYPE_CHECKING:
    from cmt_training.distributed import World
    from cmt_training.prepare import Prepared, Progress

#: Every default is TrainOptions's.
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainOptions)}

LabelSetOption = Annotated[
    str | None, typer.Option("--label-set", help="Where a data set can be read with several; else its own.")
]


def train(
    data: Annotated[Path, typer.Argument(help="Folder of MELD, IEMOCAP, AffectNet or a generated corpus.")],
    out: Annotated[Path, typer.Option(help="The checkpoint; beside it OUT.run holds history, logs, state.")],
    model: Annotated[str, typer.Option(help="cmt, image, audio, text, late, concat or conventional.")] = DEFAULTS[
        "model"
    ],
    preset: Annotated[str, typer.Option(help="Sizes: mini or base.")] = DEFAULTS["preset"],
    label_set: LabelSetOption = None,
    epochs: Annotated[int, typer.Option(help="At most.")] = DEFAULTS["epochs"],
    encoder_epochs: Annotated[
        int, typer.Option(help="Before those, of several encoders that start from nothing.")
    ] = DEFAULTS["encoder_epochs"],
    seed: Annotated[int, typer.Option(help="Of weights, order and all chance.")] = DEFAULTS["seed"],
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last whole epoch.")] = False,
    batch_size: Annotated[int, typer.Option(help="Of all processes together.")] = DEFAULTS["batch_size"],
    learning_rate: Annotated[float, typer.Option(help="Of all but the next three.")] = DEFAULTS["learning_rate"],
    head_learning_rate: Annotated[float, typer.Option(help="Of heads that read images and sounds.")] = DEFAULTS[
        "head_learning_rate"
    ],
    encoder_learning_rate: Annotated[float, typer.Option(help="Of image and audio encoders.")] = DEFAULTS[
        "encoder_learning_rate"
    ],
    text_layers: Annotated[int, typer.Option(help="Last layers of the text encoder that are trained.")] = DEFAULTS[
        "text_layers"
    ],
    text_learning_rate: Annotated[float, typer.Option(help="Theirs.")] = DEFAULTS["text_learning_rate"],
    modality_dropout: Annotated[float, typer.Option(help="Chance to lose a modality.")] = DEFAULTS["modality_dropout"],
    class_weighting: Annotated[float, typer.Option(help="0: every item counts alike; 1: every class does.")] = DEFAULTS[
        "class_weighting"
    ],
    label_smoothing: Annotated[float, typer.Option(help="0 to 1.")] = DEFAULTS["label_smoothing"],
    patience: Annotated[int, typer.Option(help="Epochs without progress before it ends.")] = DEFAULTS["patience"],
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = DEFAULTS["precision"],
    threads: Annotated[int, typer.Option(help="0: one for each core.")] = DEFAULTS["threads"],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Trains a model, calibrates it on the validation split, and writes a checkpoint for `cmt export --checkpoint`.

    Under torchrun, every process takes its share of each batch.

    Example: [bold]cmt train corpus --out runs/mini --epochs 12[/]
    """
    from cmt_cli.show import console, progress_bar

    options = TrainOptions(
        preset=preset,
        model=model,  # type: ignore[arg-type]  # checked by TrainOptions
        epochs=epochs,
        encoder_epochs=encoder_epochs,
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        encoder_learning_rate=encoder_learning_rate,
        text_layers=text_layers,
        text_learning_rate=text_learning_rate,
        modality_dropout=modality_dropout,
        class_weighting=class_weighting,
        label_smoothing=label_smoothing,
        patience=patience,
        precision=precision,  # type: ignore[arg-type]
        threads=threads,
    )
    from cmt_training.distributed import world_of_environment
    from cmt_training.train import train as run

    with world_of_environment() as world, progress_bar("train") as progress:
        told = progress if world.first else _silent
        prepared = prepared_data(data, preset, label_set, State(state), told, world)
        reached = run(prepared, options, out, told, resume=resume, world=world)
    if world.first:
        best = reached.history[reached.best_epoch - 1]
        console.print(
            f"{model} written to {out}: best of {reached.epoch} epochs is {reached.best_epoch}, validation weighted F1 "
            f"{best['validation_weighted_f1']:.4f}, cross-entropy {best['validation_cross_entropy']:.4f}",
            highlight=False,
        )


def prepared_data(
    folder: Path, preset: str, label_set: str | None, state: State, progress: Progress, world: World | None = None
) -> Prepared:
    """A data set's ready tensors for the encoders of a preset; what was skipped is printed."""
    from cmt_cli.show import console
    from cmt_export.checkpoint import checkpoint_from_preset
    from cmt_training.data import open_data_set
    from cmt_training.distributed import World
    from cmt_training.prepare import prepare

    world = world or World()
    opened = open_data_set(folder, label_set=label_set)
    checkpoint = checkpoint_from_preset(preset, opened.label_set)
    prepared = world.first_alone(
        lambda: prepare(opened, checkpoint.config.preprocess, checkpoint.tokenizer, state.root / "prepared", progress)
    )
    if prepared.skipped and world.first:
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(prepared.skipped.items()))
        console.print(f"skipped: {counts}", highlight=False)
    return prepared


def _silent(_: str, __: float) -> None:
    """What the other processes of a world say."""
