"""Training: a prepared data set and options -> a calibrated checkpoint that `cmt export --checkpoint` serves.

OUT/        the checkpoint; appears whole when training has ended
OUT.run/    what a training needs to go on, its history and its TensorBoard logs; encoders/: of their own epochs
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_export.attention import Head
from cmt_export.baselines import ConventionalFusion, LateFusion, SingleFusion
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset, save_checkpoint
from cmt_export.fusion import CrossModalFusion, Fusion
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.presets import preset_of
from cmt_pipeline.progress import Progress
from cmt_training.audio_pretraining import pretrain_audio
from cmt_training.batches import EVERYTHING, Reader, raw_sources
from cmt_training.calibration import CalibrationItems, calibrate_parts
from cmt_training.conditions import conditions
from cmt_training.distributed import World
from cmt_training.encoded import given_encoders
from cmt_training.features import feature_sources
from cmt_training.fitting import fit, precision_of, task_of
from cmt_training.frozen import frozen_sources, start_evenly, without_backbones
from cmt_training.initial import start_from_scratch
from cmt_training.metrics import best_temperature
from cmt_training.options import FROZEN, LORA, TrainOptions
from cmt_training.predict import ALONE, predict, predict_each
from cmt_training.prepare import Prepared
from cmt_training.state import TrainState, only_training
from cmt_training.trainee import Trainee, modalities_of
from cmt_training.tuning import merge_lora, published, tune_published

HISTORY_FILE = "history.json"
ENCODERS, FEATURES = "encoders", "features"  # folders of a run


def train(
    data: Prepared, options: TrainOptions, out: Path, progress: Progress, *, resume: bool = False, world: World = ALONE
) -> TrainState:
    """Trains a model and writes its checkpoint to `out`.

    resume: goes on after the last state that was kept, to the same result. Raises ValueError when `out` is there, when
    a run is there that isn't resumed, is another or is under way; DataError for an empty split.
    """
    if out.exists():
        raise ValueError(f"{out} exists; name a new folder")
    if options.threads:
        torch.set_num_threads(options.threads)
    run = _run_of(out)
    with only_training(run, world):
        return _train(data, options, out, run, progress, resume=resume, world=world)


def _train(
    data: Prepared, options: TrainOptions, out: Path, run: Path, progress: Progress, *, resume: bool, world: World
) -> TrainState:
    checkpoint = checkpoint_from_preset(options.preset, data.label_set, model=options.model, seed=options.seed)
    ready = opened(checkpoint, data, options, progress, world)
    reader = ready.reader
    if learns_encoders_first(checkpoint, options):
        reader, heads = encoders_first(
            checkpoint.model, ready, data, options, run, progress, resume=resume, world=world
        )
        start_as(cast(Any, checkpoint.model.fusion), heads)
        learning, features = CrossModalTransformer(given_encoders(), cast(Any, checkpoint.model.fusion)), True
    else:
        learning, features = checkpoint.model, False
    trainee = trainee_of(learning, ready, reader, data, options, features=features)
    state = fit(task_of(trainee, reader, data, options), options, run, progress, resume=resume, world=world)
    only = modalities_of(options.model)
    calibrate(trainee.model, reader, data.of("validation"), only, world)
    checkpoint.model.cpu()
    ready.restore()
    if world.first:
        history = vars(state) | {
            "best": None,
            "notes": data.notes,
            "conditions": conditions(processes=world.size),
        }
        (run / HISTORY_FILE).write_text(json.dumps(history, indent=1) + "\n")
        save_checkpoint(trained_checkpoint(checkpoint, options), out, half=True)
        shutil.rmtree(run / FEATURES, ignore_errors=True)
    world.wait()
    return state


def learns_encoders_first(checkpoint: Checkpoint, options: TrainOptions) -> bool:
    """Where encoders start from nothing, and are several."""
    all_published = all(encoder.weights_from is not None for encoder in checkpoint.config.encoders.values())
    return not all_published and options.encoder_epochs > 0 and options.model not in MODALITIES


@dataclass(frozen=True)
class Opened:
    """A model ready to be trained. reader: has what its frozen encoders say, which then are no part of it; published:
    whose encoders are; shares: of the learning rate, of what is tuned of them; restore: makes the model whole again."""

    reader: Reader
    published: Collection[Modality]
    shares: Mapping[str, float]
    restore: Callable[[], None]


def opened(
    checkpoint: Checkpoint, data: Prepared, options: TrainOptions, progress: Progress, world: World = ALONE
) -> Opened:
    """Sets the first weights of encoders that nobody published, and readies those that somebody did."""
    model = checkpoint.model
    if options.first_weights:
        start_from_scratch(checkpoint, options.seed)
    steps = options.audio_pretraining_steps if options.model not in ("image", "text") else 0
    world.first_alone(lambda: pretrain_audio(checkpoint, data, steps, options.seed, progress))
    shares = tune_published(checkpoint, options)
    encoders = published(checkpoint, options.model)
    frozen = encoders if options.tune == FROZEN else []
    precision = precision_of(options, world.device)
    encoded = world.first_alone(lambda: frozen_sources(model, frozen, data, precision, progress, world.device))
    put_back = without_backbones(model, encoded, [data.items[index] for index in data.of("train")])
    start_evenly(model.fusion, encoded)
    heard = 1.0 if "audio" in encoders else 1 - options.token_dropout

    def restore() -> None:
        put_back()
        if options.tune == LORA:
            merge_lora(model)

    return Opened(Reader(data, {**raw_sources(data, heard), **encoded}), encoders, shares, restore)


def encoders_first(
    model: CrossModalTransformer,
    ready: Opened,
    data: Prepared,
    options: TrainOptions,
    run: Path,
    progress: Progress,
    *,
    resume: bool,
    world: World = ALONE,
) -> tuple[Reader, LateFusion]:
    """Trains a model's encoders, each under a light head of its own.

    Returns a reader of what they then make of every item, and the heads.

    RUN/encoders/   how far their training is
    RUN/features/   what they make of every item
    """
    epochs = options.encoder_epochs
    alone = replace(options, model="late", epochs=epochs, patience=epochs)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        heads = LateFusion(preset_of(options.preset).fusion, len(labels_of(data.label_set)))
    under_heads = CrossModalTransformer(cast(Any, model.encoders), heads)
    trainee = trainee_of(under_heads, ready, ready.reader, data, alone, features=False)
    fit(task_of(trainee, ready.reader, data, alone), alone, run / ENCODERS, progress, resume=resume, world=world)
    made = world.first_alone(lambda: feature_sources(under_heads, ready.reader, data, run / FEATURES, progress))
    return Reader(data, made), heads


def start_as(fusion: Fusion, heads: LateFusion) -> None:
    """Lets a fusion begin with those of its parts that the heads have, under which the encoders learnt.

    Some have whole heads, others pools; self-attention over tokens has neither.
    """
    if isinstance(fusion, LateFusion):
        fusion.load_state_dict(heads.state_dict())
    elif isinstance(fusion, CrossModalFusion):
        fusion.heads.load_state_dict(heads.heads.state_dict())
    elif isinstance(fusion, SingleFusion):
        fusion.head.load_state_dict(heads.heads[fusion.index].state_dict())
    elif not isinstance(fusion, ConventionalFusion):
        for pool, head in zip(cast(Any, fusion).pools, heads.heads, strict=True):
            pool.load_state_dict(cast(Head, head).pool.state_dict())


def trainee_of(
    model: CrossModalTransformer,
    ready: Opened,
    reader: Reader,
    data: Prepared,
    options: TrainOptions,
    *,
    features: bool,
) -> Trainee:
    labels, cues = len(labels_of(data.label_set)), reader.cues()
    return Trainee(model, options, labels, features=features, cues=cues, shares=ready.shares, published=ready.published)


def how_it_was_trained(out: Path) -> dict[str, Any]:
    """Command, options and best epoch of the training that wrote a checkpoint, if its run still lies beside it."""
    path = _run_of(out) / HISTORY_FILE
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return {"conditions": values["conditions"], "options": values["recipe"]["options"], "epoch": values["best_epoch"]}


def is_finished(out: Path, options: TrainOptions) -> bool:
    """Whether a training of these options has written its checkpoint. ValueError where another one has."""
    if not out.exists():
        return False
    told, asked = how_it_was_trained(out).get("options", {}), json.loads(json.dumps(options.recipe()))
    if differ := sorted(key for key in {*told, *asked} if told.get(key) != asked.get(key)):
        raise ValueError(
            f"{out} holds a checkpoint of other {', '.join(differ)}: got { {key: told.get(key) for key in differ} }, "
            f"expected { {key: asked.get(key) for key in differ} }; name a new folder"
        )
    return True


def calibrate(
    model: CrossModalTransformer,
    reader: Reader,
    validation: Sequence[int],
    only: NDArray[np.int64] = EVERYTHING,
    world: World = ALONE,
) -> float:
    """Sets what a fusion has to be calibrated to what suits the validation items best. Returns its temperature.

    only [3]: modalities that are read.
    """
    if isinstance(model.fusion, CrossModalFusion):
        onlys = [only, *map(modalities_of, MODALITIES)]
        whole, *alone = predict_each(model, reader, validation, onlys, world=world)
        separate = torch.from_numpy(np.stack([one.logits for one in alone], axis=1)).double()
        there = torch.tensor([[reader.items[index].has(m) for m in MODALITIES] for index in validation]).double()
        items = CalibrationItems(separate, there, torch.from_numpy(whole.labels))
        calibrate_parts(model.fusion, items, torch.from_numpy(whole.logits))
        return 1.0
    found = predict(model, reader, validation, only=only, world=world)
    temperature = best_temperature(found.logits, found.labels)
    model.fusion.temperature.fill_(temperature)
    return temperature


def trained_checkpoint(checkpoint: Checkpoint, options: TrainOptions) -> Checkpoint:
    """Says that it is trained, and leaves out only those published weights that still are what was published."""
    tuned = published(checkpoint, options.model) if options.tune != FROZEN else []
    encoders = {
        m: replace(encoder, weights_from=None, weights_sha256=None) if m in tuned else encoder
        for m, encoder in checkpoint.config.encoders.items()
    }
    return replace(checkpoint, config=replace(checkpoint.config, trained=True, encoders=encoders))


def _run_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")
