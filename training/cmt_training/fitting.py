"""Fitting a trainee: epochs of steps, each of them the same whoever runs it and however often it was interrupted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cmt_export.fusion import CrossModalFusion
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import Progress
from cmt_training.batches import Batch, Randomness, Reader, epoch_order
from cmt_training.distributed import Sharded, Whole, World, clip
from cmt_training.frozen import fast_precision
from cmt_training.metrics import best_temperature, metrics_of, softmax
from cmt_training.options import TrainOptions
from cmt_training.predict import ALONE, on_device, predict_each
from cmt_training.prepare import Prepared
from cmt_training.state import Average, Learning, TrainState, load_state, save_state
from cmt_training.trainee import Answers, Loss, Trainee, average_of, groups_of, modalities_of


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
    recipe = {"options": options.recipe(), "data": data.folder.name, "torch": torch.__version__}
    return Task(trainee, reader, data.of("train"), data.of("validation"), labels, recipe)


def fit(
    task: Task, options: TrainOptions, run: Path, progress: Progress, *, resume: bool, world: World = ALONE
) -> TrainState:
    """Trains task.trainee, leaves it with the weights of its best epoch, and keeps its state in `run` until then."""
    if not resume and any(run.glob("epoch-*")):
        raise ValueError(f"{run} holds a training; go on with --resume, or name another folder")
    loss = Loss(options, task.reader.labels(task.training), task.labels)
    start_from_prior(task.trainee.model.fusion, loss.prior)
    without_idle(task, loss)
    fitting = _Fitting(task, options, loss.to(world.device), world)
    state = (load_state(run, task.recipe, fitting.learning) if resume else None) or TrainState(task.recipe)
    with _logger(run, state.epoch, world) as log:
        while not finished(state, options):
            start = time.perf_counter()
            row = {"training_loss": fitting.epoch(state, run, _epoch_progress(progress, state, options))}
            with fitting.learning.average.in_place():
                row |= fitting.validate()
                weights = fitting.learning.weights()
            state.epoch, state.step, state.losses = state.epoch + 1, 0, 0.0
            row |= {"epoch": float(state.epoch), "seconds": time.perf_counter() - start}
            state.history.append(row)
            if state.best_loss is None or row["validation_cross_entropy"] < state.best_loss:
                state.best_loss, state.best_epoch = row["validation_cross_entropy"], state.epoch
                state.best = weights
            log(row)
            save_state(run, state, fitting.learning, world)
    task.trainee.load_state_dict(state.best, strict=False)
    task.trainee.to(world.device).eval()
    return state


def start_from_prior(fusion: nn.Module, prior: torch.Tensor) -> None:
    """Evidence is what goes beyond the prior [labels]."""
    if isinstance(fusion, CrossModalFusion):
        fusion.log_prior.copy_(prior.log())


def finished(state: TrainState, options: TrainOptions) -> bool:
    return state.epoch >= options.epochs or state.epoch - state.best_epoch >= options.patience


def without_idle(task: Task, loss: Loss) -> None:
    """Lets no parameter ask for a gradient that an item can't give it: all others then get one in every step."""
    only = modalities_of(loss.options.model)
    with torch.random.fork_rng():
        batch = task.reader.batch(task.training[:1], Randomness(0, 0, 0.0, False), only)
        sums = loss(Answers(*task.trainee.train()(batch.inputs, batch.presence)), batch)
        torch.autograd.backward(loss.weigh(sums, loss.counts(batch)))
    for parameter in task.trainee.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def share_of_peak(step: int, steps: int, options: TrainOptions) -> float:
    """Of the learning rate at a step (from 1) of so many: linear warm-up, then half a cosine to 0."""
    warm_up = max(1, round(options.warm_up * steps))
    if step <= warm_up:
        return step / warm_up
    return float((1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up + 1))) / 2)


def precision_of(options: TrainOptions, device: torch.device) -> torch.dtype:
    """bf16 autocast where the machine multiplies bf16 faster than fp32. ValueError for fp16 on a CPU."""
    if options.precision == "fp16" and device.type == "cpu":
        raise ValueError("precision: got fp16 on a CPU; expected bf16 or fp32 there")
    if options.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    return torch.bfloat16 if device.type == "cuda" else fast_precision()


class _Fitting:
    """A trainee that learns in a world: whole in every process, or its encoders in shards."""

    def __init__(self, task: Task, options: TrainOptions, loss: Loss, world: World) -> None:
        self.task, self.options, self.loss, self.world = task, options, loss, world
        self.precision = precision_of(options, world.device)
        sharded = options.shard and world.size > 1
        self.learner = Sharded(task.trainee, world, _encoders) if sharded else Whole(task.trainee, world)
        self.trainee = cast(Trainee, self.learner.module)
        self.parameters = [p for p in self.trainee.parameters() if p.requires_grad]
        scaler = torch.amp.grad_scaler.GradScaler(world.device.type, enabled=self.precision == torch.float16)
        optimizer = torch.optim.AdamW(groups_of(self.trainee, options))
        self.learning = Learning(
            self.trainee, optimizer, Average(self.trainee, average_of(self.trainee, options)), scaler
        )

    def epoch(self, state: TrainState, run: Path, report: Callable[[float], None]) -> float:
        """The rest of one pass over the training items; the mean loss of its steps."""
        task, options = self.task, self.options
        only = modalities_of(options.model)
        dropout = options.modality_dropout if only.sum() > 1 and options.model != "late" else 0.0
        randomness = Randomness(options.seed, state.epoch, dropout, options.augment)
        lengths = task.reader.lengths(task.training, only)
        order = epoch_order(task.training, lengths, options.batch_size, options.seed, state.epoch)
        self.trainee.train()
        while state.step < len(order):
            seed = np.random.SeedSequence((options.seed, state.epoch, state.step, self.world.rank)).generate_state(1)
            torch.manual_seed(int(seed[0]))
            done = state.epoch * len(order) + state.step + 1
            rate = share_of_peak(done, options.epochs * len(order), options)
            parts = [order[state.step][first :: options.accumulate] for first in range(options.accumulate)]
            shares = [self.world.share(part) for part in parts if part]
            batches = [(task.reader.batch(own, randomness, only), counts) for own, counts in shares]
            state.losses += self._step(batches, rate)
            self.learning.average.update(done)
            state.step += 1
            if options.save_every and state.step % options.save_every == 0 and state.step < len(order):
                save_state(run, state, self.learning, self.world)
            report(done / (len(order) * options.epochs))
        return state.losses / len(order)

    def _step(self, batches: Sequence[tuple[Batch, bool]], rate: float) -> float:
        """One step of the optimizer; the loss of the whole batch, of all processes together.

        batches: this process's share of each part, and whether it counts. rate: share of the peak learning rate.
        """
        optimizer, scaler = self.learning.optimizer, self.learning.scaler
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.zero_grad(set_to_none=True)
        counts = torch.stack([self.loss.counts(batch) * counted for batch, counted in batches]).sum(dim=0)
        counts = self.world.total(counts.to(self.world.device))
        sums = torch.zeros_like(counts)
        for number, (batch, counted) in enumerate(batches, start=1):
            with self.learner.part_of_step(last=number == len(batches)):
                sums += self._backward(on_device(batch, self.world.device), counts, counted)
        scaler.unscale_(optimizer)
        clip(self.parameters, self.options.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        whole = float(self.loss.weigh(self.world.total(sums), counts))
        if not np.isfinite(whole):
            raise ValueError("the loss became NaN or infinite; train with a lower --learning-rate or --precision fp32")
        return whole

    def _backward(self, batch: Batch, counts: torch.Tensor, counted: bool) -> torch.Tensor:
        """Adds to the gradients; the sums of a part's losses."""
        with torch.autocast(self.world.device.type, self.precision, enabled=self.precision != torch.float32):
            answers = Answers(*self.learner(batch.inputs, batch.presence))
        sums: torch.Tensor = self.loss(answers, batch) * counted
        # Gradients are averaged over the processes; here they are parts of one sum.
        loss = self.loss.weigh(sums, counts) * self.world.size
        torch.autograd.backward(self.learning.scaler.scale(loss))
        return sums.detach()

    def validate(self) -> dict[str, float]:
        """Measured at the best temperature, which the model gets in the end; of single modalities the F1 too."""
        only = modalities_of(self.options.model)
        alone = [modalities_of(m) for m in MODALITIES] if only.sum() > 1 else []
        found, *single = predict_each(
            self.trainee.model,
            self.task.reader,
            self.task.validation,
            [only, *alone],
            world=self.world,
            precision=self.precision,
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


def _encoders(trainee: nn.Module) -> list[nn.Module]:
    """Those that are computed, whose weights weigh most."""
    encoders = cast(Trainee, trainee).model.encoders.values()
    return [encoder for encoder in encoders if any(p.requires_grad for p in encoder.parameters())]


def _epoch_progress(progress: Progress, state: TrainState, options: TrainOptions) -> Callable[[float], None]:
    what = f"epoch {state.epoch + 1} of {options.epochs}"
    if state.history:
        what += ", validation F1 {validation_weighted_f1:.3f}, loss {validation_cross_entropy:.3f}".format(
            **state.history[-1]
        )
    return lambda done: progress(what, done)


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
