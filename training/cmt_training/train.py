"""Training: a prepared data set and options -> a calibrated checkpoint that `cmt export --checkpoint` serves.

OUT/        the checkpoint; appears whole when training has ended
OUT.run/    what a training needs to go on, its history and its TensorBoard logs; encoders/: of their own epochs
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cmt_export.baselines import ConventionalFusion, Head, LateFusion, SingleFusion
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset, save_checkpoint
from cmt_export.fusion import Fusion
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import preset_of
from cmt_pipeline.progress import Progress
from cmt_training.audio_pretraining import pretrain_audio
from cmt_training.batches import Batch, Randomness, Reader, epoch_order, raw_sources
from cmt_training.conditions import conditions
from cmt_training.distributed import World
from cmt_training.encoded import given_encoders
from cmt_training.features import feature_sources
from cmt_training.frozen import fast_precision, frozen_modalities, frozen_sources, start_evenly, without_backbones
from cmt_training.initial import start_from_scratch
from cmt_training.layer_cache import hidden_rows, without_lower_layers
from cmt_training.metrics import best_temperature, metrics_of, softmax
from cmt_training.options import TrainOptions
from cmt_training.predict import ALONE, Predictions, on_device, predict, predict_each
from cmt_training.prepare import Prepared
from cmt_training.state import TrainState, load_state, save_state
from cmt_training.trainee import Answers, Loss, Trainee, groups_of, modalities_of

HISTORY_FILE = "history.json"
ENCODERS, FEATURES = "encoders", "features"  # folders of a run


@dataclass(frozen=True)
class Task:
    """What is fitted: a trainee on the items of a reader. recipe: all that decides the result."""

    trainee: Trainee
    reader: Reader
    training: Sequence[int]
    validation: Sequence[int]
    labels: int
    recipe: dict[str, Any]


def task_of(trainee: Trainee, reader: Reader, data: Prepared, options: TrainOptions) -> Task:
    labels = len(labels_of(data.label_set))
    recipe = {"options": asdict(options), "data": data.folder.name, "torch": torch.__version__}
    return Task(trainee, reader, data.of("train"), data.of("validation"), labels, recipe)


def train(
    data: Prepared, options: TrainOptions, out: Path, progress: Progress, *, resume: bool = False, world: World = ALONE
) -> TrainState:
    """Trains a model and writes its checkpoint to `out`.

    resume: goes on after the last whole epoch, to the same result. Raises ValueError when `out` is there, when
    a run is there that isn't resumed or is another; DataError for an empty split.
    """
    if out.exists():
        raise ValueError(f"{out} exists; name a new folder")
    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = checkpoint_from_preset(options.preset, data.label_set, model=options.model, seed=options.seed)
    run = _run_of(out)
    reader, restore = opened(checkpoint, data, options, progress, world)
    if learns_encoders_first(checkpoint, options):
        reader, heads = encoders_first(
            checkpoint.model, reader, data, options, run, progress, resume=resume, world=world
        )
        start_as(cast(Any, checkpoint.model.fusion), heads)
        learning, features = CrossModalTransformer(given_encoders(), cast(Any, checkpoint.model.fusion)), True
    else:
        learning, features = checkpoint.model, False
    trainee = trainee_of(learning, reader, data, options, features=features, world=world)
    state = fit(task_of(trainee, reader, data, options), options, run, progress, resume=resume, world=world)
    calibrate(trainee.model, predict(trainee.model, reader, data.of("validation"), only=modalities_of(options.model)))
    restore()
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
    published = all(encoder.weights_from is not None for encoder in checkpoint.config.encoders.values())
    return not published and options.encoder_epochs > 0 and options.model not in MODALITIES


def opened(
    checkpoint: Checkpoint, data: Prepared, options: TrainOptions, progress: Progress, world: World = ALONE
) -> tuple[Reader, Callable[[], None]]:
    """Sets the first weights of encoders that nobody published; a reader of the data, and what restores the model.

    Until then the model has no more than what is trained: the reader has what frozen encoders and layers say.
    """
    start_from_scratch(checkpoint, options.seed)
    world.first_alone(lambda: pretrain_audio(checkpoint, data, options.audio_pretraining_steps, options.seed, progress))
    backbone = without_lower_layers(checkpoint.model, options.text_layers)
    rows = world.first_alone(lambda: hidden_rows(backbone, data, options.text_layers, progress))
    sources = raw_sources(data, rows, 1 - options.token_dropout)
    frozen = [] if options.tune_encoders else frozen_modalities(checkpoint)
    precision = precision_of(options, world.device)
    encoded = world.first_alone(
        lambda: frozen_sources(checkpoint.model, frozen, data, precision, progress, world.device)
    )
    put_back = without_backbones(checkpoint.model, encoded, [data.items[index] for index in data.of("train")])
    start_evenly(checkpoint.model.fusion, encoded)

    def restore() -> None:
        put_back()
        cast(Any, checkpoint.model.encoders["text"]).backbone = backbone

    return Reader(data, {**sources, **encoded}), restore


def encoders_first(
    model: CrossModalTransformer,
    reader: Reader,
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
    trainee = trainee_of(under_heads, reader, data, alone, features=False, world=world)
    fit(task_of(trainee, reader, data, alone), alone, run / ENCODERS, progress, resume=resume, world=world)
    made = world.first_alone(lambda: feature_sources(under_heads, reader, data, run / FEATURES, progress))
    return Reader(data, made), heads


def start_as(fusion: Fusion, heads: LateFusion) -> None:
    """Lets a fusion begin with those of its parts that the heads have, under which the encoders learnt.

    A single modality and late fusion have whole heads, others pools; self-attention over tokens has neither.
    """
    if isinstance(fusion, LateFusion):
        fusion.load_state_dict(heads.state_dict())
    elif isinstance(fusion, SingleFusion):
        fusion.head.load_state_dict(heads.heads[fusion.index].state_dict())
    elif not isinstance(fusion, ConventionalFusion):
        for pool, head in zip(cast(Any, fusion).pools, heads.heads, strict=True):
            pool.load_state_dict(cast(Head, head).pool.state_dict())


def trainee_of(
    model: CrossModalTransformer,
    reader: Reader,
    data: Prepared,
    options: TrainOptions,
    *,
    features: bool,
    world: World = ALONE,
) -> Trainee:
    labels = len(labels_of(data.label_set))
    return Trainee(model, options, labels, features=features, cues=reader.cues()).to(world.device)


def how_it_was_trained(out: Path) -> dict[str, Any]:
    """Command, options and best epoch of the training that wrote a checkpoint, if its run still lies beside it."""
    path = _run_of(out) / HISTORY_FILE
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return {"conditions": values["conditions"], "options": values["recipe"]["options"], "epoch": values["best_epoch"]}


def fit(
    task: Task, options: TrainOptions, run: Path, progress: Progress, *, resume: bool, world: World = ALONE
) -> TrainState:
    """Trains task.trainee, leaves it with the weights of its best epoch, and keeps its state in `run` until then."""
    trainee = task.trainee
    loss = Loss(options, task.reader.labels(task.training), task.labels).to(world.device)
    optimizer = torch.optim.AdamW(groups_of(trainee, options))
    state = (load_state(run, task.recipe, trainee, optimizer) if resume else None) or TrainState(task.recipe)
    if not resume and any(run.glob("epoch-*")):
        raise ValueError(f"{run} holds a training; go on with --resume, or name another folder")
    wrapped = DistributedDataParallel(trainee, find_unused_parameters=True) if world.size > 1 else trainee
    with _logger(run, state.epoch, world) as log:
        while not finished(state, options):
            start = time.perf_counter()
            step = _Step(wrapped, loss, optimizer, options, world)
            training_loss = _epoch(task, options, state.epoch, step, _epoch_progress(progress, state, options))
            row = {"training_loss": training_loss} | _validate(task, options, world)
            state.epoch += 1
            row |= {"epoch": float(state.epoch), "seconds": time.perf_counter() - start}
            state.history.append(row)
            if state.best_loss is None or row["validation_cross_entropy"] < state.best_loss:
                state.best_loss, state.best_epoch = row["validation_cross_entropy"], state.epoch
                state.best = {name: tensor.detach().cpu().clone() for name, tensor in trainee.state_dict().items()}
            log(row)
            if world.first:
                save_state(run, state, trainee, optimizer)
            world.wait()
    trainee.load_state_dict(state.best)
    trainee.eval()
    return state


def finished(state: TrainState, options: TrainOptions) -> bool:
    return state.epoch >= options.epochs or state.epoch - state.best_epoch >= options.patience


def calibrate(model: CrossModalTransformer, validation: Predictions) -> float:
    """Sets the fusion's temperature to what suits the validation items best."""
    temperature = best_temperature(validation.logits, validation.labels)
    model.fusion.temperature.fill_(temperature)
    return temperature


def trained_checkpoint(checkpoint: Checkpoint, options: TrainOptions) -> Checkpoint:
    """Says that it is trained, and leaves out only those published weights that still are what was published."""
    tuned = {"image": options.tune_encoders, "audio": options.tune_encoders, "text": options.text_layers > 0}
    encoders = {
        m: encoder if not tuned[m] else replace(encoder, weights_from=None, weights_sha256=None)
        for m, encoder in checkpoint.config.encoders.items()
    }
    return replace(checkpoint, config=replace(checkpoint.config, trained=True, encoders=encoders))


def precision_of(options: TrainOptions, device: torch.device) -> torch.dtype:
    """bf16 autocast where the machine multiplies bf16 faster than fp32."""
    if options.precision != "auto":
        return torch.bfloat16 if options.precision == "bf16" else torch.float32
    return torch.bfloat16 if device.type == "cuda" else fast_precision()


@dataclass(frozen=True)
class _Step:
    """One step of the optimizer."""

    module: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    options: TrainOptions
    world: World

    def __call__(self, batch: Batch, counts_here: bool, rate: float) -> float:
        """rate: share of the peak learning rate. The loss of the whole batch, of all processes together."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        precision = precision_of(self.options, self.world.device)
        with torch.autocast(self.world.device.type, precision, enabled=precision != torch.float32):
            answers = Answers(*self.module(batch.inputs, batch.presence))
        sums, counts = self.loss(answers, batch)
        sums, counts = sums * counts_here, self.world.total((counts * counts_here).detach())
        # DistributedDataParallel averages gradients; here they are parts of one sum.
        torch.autograd.backward(self.loss.weigh(sums, counts) * self.world.size)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.options.clip_norm)
        self.optimizer.step()
        whole = float(self.loss.weigh(self.world.total(sums.detach()), counts))
        if not np.isfinite(whole):
            raise ValueError("the loss became NaN or infinite; train with a lower --learning-rate or --precision fp32")
        return whole


def _epoch(task: Task, options: TrainOptions, epoch: int, step: _Step, report: Callable[[float], None]) -> float:
    """One pass over the training items; the mean loss of its steps."""
    world = step.world
    seed = np.random.SeedSequence((options.seed, epoch, world.rank)).generate_state(1)[0]
    torch.manual_seed(int(seed))
    only = modalities_of(options.model)
    dropout = options.modality_dropout if only.sum() > 1 and options.model != "late" else 0.0
    randomness = Randomness(options.seed, epoch, dropout, options.augment)
    lengths = task.reader.lengths(task.training, only)
    order = epoch_order(task.training, lengths, options.batch_size, options.seed, epoch)
    task.trainee.train()
    total = 0.0
    for number, indices in enumerate(order):
        own, counts_here = world.share(indices)
        batch = on_device(task.reader.batch(own, randomness, only), world.device)
        done = (epoch + number / len(order)) / options.epochs
        rate = share_of_peak(epoch * len(order) + number + 1, options.epochs * len(order), options)
        total += step(batch, counts_here, rate)
        report(done)
    return total / len(order)


def share_of_peak(step: int, steps: int, options: TrainOptions) -> float:
    """Of the learning rate at a step (from 1) of so many: linear warm-up, then half a cosine to 0."""
    warm_up = max(1, round(options.warm_up * steps))
    if step <= warm_up:
        return step / warm_up
    return float((1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up + 1))) / 2)


def _validate(task: Task, options: TrainOptions, world: World) -> dict[str, float]:
    """Measured at the best temperature, which the model gets in the end; of single modalities the F1 too."""
    only = modalities_of(options.model)
    alone = [modalities_of(m) for m in MODALITIES] if only.sum() > 1 else []
    found, *single = predict_each(
        task.trainee.model,
        task.reader,
        task.validation,
        [only, *alone],
        world=world,
        precision=precision_of(options, world.device),
    )
    temperature = best_temperature(found.logits, found.labels)
    metrics = metrics_of(softmax(found.logits, temperature), found.labels)
    return {
        "validation_cross_entropy": metrics["cross_entropy"],
        "validation_weighted_f1": metrics["weighted_f1"],
        "temperature": temperature,
    } | {
        f"validation_weighted_f1_{m}": metrics_of(softmax(predictions.logits), predictions.labels)["weighted_f1"]
        for m, predictions in zip(MODALITIES, single, strict=False)
    }


def _epoch_progress(progress: Progress, state: TrainState, options: TrainOptions) -> Callable[[float], None]:
    what = f"epoch {state.epoch + 1} of {options.epochs}"
    if state.history:
        what += ", validation F1 {validation_weighted_f1:.3f}, loss {validation_cross_entropy:.3f}".format(
            **state.history[-1]
        )
    return lambda done: progress(what, done)


def _run_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")


@contextlib.contextmanager
def _logger(run: Path, epoch: int, world: World) -> Iterator[Callable[[dict[str, float]], None]]:
    """Writes rows of the history to TensorBoard, from the first process alone."""
    if not world.first:
        yield lambda _: None
        return
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(run / "logs"), purge_step=epoch + 1) as writer:

        def log(row: dict[str, float]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["epoch"]))

        yield log
