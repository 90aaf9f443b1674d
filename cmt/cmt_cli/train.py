"""`cmt train`: a data set -> a calibrated checkpoint."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_cli.checkpoint import push_target, push_to
from cmt_cli.on_cluster import DEFAULT_NAMESPACE, DEFAULT_READY_S, ContextOption, NamespaceOption, Place, ReadyOption
from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_cli.train_on_cluster import (
    DEFAULT_MANIFESTS,
    ProcessesOption,
    TrainManifestsOption,
    TrainOnClusterOption,
    TrainStoreOption,
    options_given,
    train_on_cluster,
)
from cmt_pipeline.presets import with_encoders
from cmt_training.options import TrainOptions

if TYPE_CHECKING:
    from cmt_export.checkpoint import Checkpoint
    from cmt_pipeline.progress import Progress
    from cmt_training.data import DataChoice
    from cmt_training.distributed import World
    from cmt_training.examples import DataSet
    from cmt_training.prepare import Prepared

#: Every default is TrainOptions's.
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainOptions)}

FIRST = 3  # of what was skipped, so many are named

LabelSetOption = Annotated[
    str | None,
    typer.Option(
        "--label-set",
        help="Label set that the data's labels are read as; or some of them: joy,anger.",
    ),
]


DataArgument = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of a data set that is known, or of folders named by label; or a table: CSV, TSV, JSON Lines or "
        "Parquet.",
        show_default=False,
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(help="Folder that the paths of a table are relative to; its own by default.", show_default=False),
]
PairOption = Annotated[
    list[str],
    typer.Option(
        help="MODALITY=DATA, two or three times and instead of DATA: examples paired by label.", show_default=False
    ),
]
NO_PAIRS: list[str] = []


def train(
    typed: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Folder of the checkpoint; OUT.run beside it holds history, logs and state.")
    ],
    data: DataArgument = None,
    root: RootOption = None,
    pair: PairOption = NO_PAIRS,
    model: Annotated[str, typer.Option(help="cmt, image, audio, text, late, concat or conventional.")] = DEFAULTS[
        "model"
    ],
    preset: Annotated[str, typer.Option(help="Encoders and sizes: mini, base, or the path of a TOML file.")] = DEFAULTS[
        "preset"
    ],
    image_encoder: Annotated[
        str | None,
        typer.Option(help="Published encoder in place of the preset's: a folder, or a hub's name.", show_default=False),
    ] = None,
    audio_encoder: Annotated[str | None, typer.Option(help="The same of sound.", show_default=False)] = None,
    text_encoder: Annotated[str | None, typer.Option(help="The same of text.", show_default=False)] = None,
    label_set: LabelSetOption = None,
    epochs: Annotated[int, typer.Option(help="Most epochs.")] = DEFAULTS["epochs"],
    encoder_epochs: Annotated[
        int, typer.Option(help="Epochs before those for encoders without published weights.")
    ] = DEFAULTS["encoder_epochs"],
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = DEFAULTS["seed"],
    resume: Annotated[bool, typer.Option("--resume", help="Continue where the last state was kept.")] = False,
    batch_size: Annotated[int, typer.Option(help="Batch size of all processes together.")] = DEFAULTS["batch_size"],
    accumulate: Annotated[int, typer.Option(help="Parts that a batch is computed in, one after another.")] = DEFAULTS[
        "accumulate"
    ],
    tune: Annotated[
        str,
        typer.Option(help="What of published encoders is trained: frozen, last-N (layers), full or lora."),
    ] = DEFAULTS["tune"],
    tune_learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of that; 5e-4 for lora, else 3e-5 at the last layer.", show_default=False),
    ] = DEFAULTS["tune_learning_rate"],
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="A layer's learning rate as a share of that of the one above; its family's.", show_default=False
        ),
    ] = DEFAULTS["layer_decay"],
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the fusion; 1e-4 beside encoders that are tuned, else 3e-4.", show_default=False
        ),
    ] = DEFAULTS["learning_rate"],
    head_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of heads on image and audio encoders that aren't tuned.")
    ] = DEFAULTS["head_learning_rate"],
    encoder_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of image and audio encoders without published weights.")
    ] = DEFAULTS["encoder_learning_rate"],
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of the average of weights that is evaluated and saved; 0.999 where encoders are tuned, 0.99 "
            "where all stay as they are, else 0.",
            show_default=False,
        ),
    ] = DEFAULTS["ema"],
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time, for encoders being tuned.")
    ] = DEFAULTS["gradient_checkpointing"],
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun, keep a part of the encoders in each process (FSDP2).")
    ] = DEFAULTS["shard"],
    save_every: Annotated[
        int, typer.Option(help="Steps between states that --resume finds; 0 means after each epoch only.")
    ] = DEFAULTS["save_every"],
    modality_dropout: Annotated[float, typer.Option(help="Probability of dropping a modality.")] = DEFAULTS[
        "modality_dropout"
    ],
    class_weighting: Annotated[float, typer.Option(help="0 weighs every item alike, 1 every class.")] = DEFAULTS[
        "class_weighting"
    ],
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing, 0 to 1.")] = DEFAULTS["label_smoothing"],
    patience: Annotated[int, typer.Option(help="Epochs without progress before training stops.")] = DEFAULTS[
        "patience"
    ],
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or, on a GPU, fp16.")] = DEFAULTS["precision"],
    threads: Annotated[int, typer.Option(help="Threads; 0 means one for each core.")] = DEFAULTS["threads"],
    state: StateOption = DEFAULT_STATE,
    push: Annotated[
        bool, typer.Option("--push", help="Send the checkpoint to the store, named as OUT's folder.")
    ] = False,
    store: TrainStoreOption = None,
    kubernetes: TrainOnClusterOption = False,
    processes: ProcessesOption = None,
    manifests: TrainManifestsOption = DEFAULT_MANIFESTS,
    context: ContextOption = None,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    ready_timeout_s: ReadyOption = DEFAULT_READY_S,
) -> None:
    """Trains and calibrates a model, and writes a checkpoint for `cmt export`.

    Under torchrun, every process takes its share of each batch. With --kubernetes the pods of a Job do: paths and
    options are theirs, and the checkpoint is fetched from their store. The same command again follows the same Job.

    Example: [bold]cmt train corpus --out runs/mini --epochs 12[/]
    """
    from cmt_cli.show import console, progress_bar

    if kubernetes:
        place = Place(context, namespace, ready_timeout_s)
        train_on_cluster(place, manifests, out, data, options_given(typed), processes, store)
        return
    preset = with_encoders(preset, {"image": image_encoder, "audio": audio_encoder, "text": text_encoder})
    options = TrainOptions(
        preset=preset,
        model=model,  # type: ignore[arg-type]  # checked by TrainOptions
        epochs=epochs,
        encoder_epochs=encoder_epochs,
        seed=seed,
        batch_size=batch_size,
        accumulate=accumulate,
        tune=tune,
        tune_learning_rate=tune_learning_rate,
        layer_decay=layer_decay,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        encoder_learning_rate=encoder_learning_rate,
        ema=ema,
        gradient_checkpointing=gradient_checkpointing,
        shard=shard,
        save_every=save_every,
        modality_dropout=modality_dropout,
        class_weighting=class_weighting,
        label_smoothing=label_smoothing,
        patience=patience,
        precision=precision,  # type: ignore[arg-type]
        threads=threads,
    )
    from cmt_pipeline.progress import no_progress
    from cmt_training.data import DataChoice
    from cmt_training.distributed import world_of_environment
    from cmt_training.train import is_finished
    from cmt_training.train import train as run

    target = push_target(store, out, resumed=resume and out.exists()) if push else None
    if resume and is_finished(out, options):
        console.print(f"{out} is there already, of these options", highlight=False)
        if target is not None and is_first_process():
            push_to(target, out)
        return
    with world_of_environment() as world, progress_bar("train") as progress:
        report = progress if world.first else no_progress
        choice = DataChoice(data, root, tuple(pair))
        prepared = prepared_data(choice, preset, label_set, State(state), report, world)
        reached = run(prepared, options, out, report, resume=resume, world=world)
    if world.first:
        best = reached.history[reached.best_epoch - 1]
        console.print(
            f"{model} written to {out}: best of {reached.epoch} epochs is {reached.best_epoch}, validation weighted F1 "
            f"{best['validation_weighted_f1']:.4f}, cross-entropy {best['validation_cross_entropy']:.4f}",
            highlight=False,
        )
        if target is not None:
            push_to(target, out)


def prepared_data(
    choice: DataChoice,
    model: Checkpoint | str,
    label_set: str | None,
    state: State,
    progress: Progress,
    world: World | None = None,
) -> Prepared:
    """A data set's ready tensors for the encoders of a checkpoint or a preset; what it skips and notes is printed."""
    from cmt_export.checkpoint import checkpoint_from_preset
    from cmt_training.distributed import World
    from cmt_training.prepare import prepare

    world = world or World()
    opened = choice.open(label_set)
    checkpoint = checkpoint_from_preset(model, opened.label_set) if isinstance(model, str) else model
    prepared = world.first_alone(
        lambda: prepare(opened, checkpoint.config.preprocess, checkpoint.tokenizer, state.root / "prepared", progress)
    )
    if world.first:
        _tell(opened, prepared)
    return prepared


def is_first_process() -> bool:
    """Of those that torchrun started, before they meet."""
    return os.environ.get("RANK", "0") == "0"


def _tell(opened: DataSet, prepared: Prepared) -> None:
    from cmt_cli.show import console

    for note in prepared.notes:
        console.print(note, highlight=False, markup=False)
    for reason, count in sorted(prepared.skipped.items()):
        named = opened.skipped.get(reason, ())
        first = f" ({', '.join(named[:FIRST])}{', …' if len(named) > FIRST else ''})" if named else ""
        console.print(f"skipped: {reason}: {count}{first}", highlight=False, markup=False)
