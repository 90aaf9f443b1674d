"""The ladder on one data set: trainings, each written at once, and what the rungs make of them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmt_export.attention import perceptron
from cmt_export.log_linear import Calibrated, Expert, LogLinearFusion
from cmt_pipeline.modality import MODALITIES
from cmt_release.locks import make_once
from cmt_training.binding.family import WIDTH, Items
from cmt_training.binding.fit import stacked
from cmt_training.binding.ladder import parameters_of
from cmt_training.binding.run import EMAP_ITEMS, additive
from cmt_training.calibration import CalibrationItems, Scaling, fitted, vector_scaling
from cmt_training.compare.learn import ONLY, Budget, Net, learn, said
from cmt_training.compare.tokens import Tokens
from cmt_training.metrics import Floats, softmax


@dataclass(frozen=True)
class Training:
    """One net's. validation: logits [items, labels], or [items, 3, labels] of `late`; test: the same, by what was left
    out of the items; parameters: those of the projections too."""

    model: str
    seed: int
    learning_rate: float
    validation_loss: float
    best_step: int
    seconds: float
    parameters: int
    validation: Floats
    test: Mapping[str, Floats]


@dataclass(frozen=True)
class Answered:
    """A rung of one seed. probabilities [items, labels] of the test items, by what was left out of them."""

    learning_rate: float
    seconds: float
    parameters: int
    probabilities: Mapping[str, Floats]


@dataclass(frozen=True)
class Place:
    """Where the tokens of a data set, and what is trained on them under a budget, lie."""

    folder: Path
    budget: Budget

    @property
    def tokens_folder(self) -> Path:
        return self.folder / "tokens"

    def tokens(self) -> Tokens:
        return Tokens.open(self.tokens_folder)

    def file(self, model: str, seed: int, rate: float) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(self.budget)).encode()).hexdigest()[:8]
        return self.folder / f"trained-{digest}" / f"{model}-{seed}-{rate:g}.npz"

    def net(self, training: Training, labels: int) -> Net:
        net = Net(training.model, labels)
        path = self.file(training.model, training.seed, training.learning_rate).with_suffix(".pt")
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()


def trained(model: str, tokens: Tokens, place: Place, seeds: Sequence[int]) -> list[Training]:
    """A training for each seed, at the learning rate that is best with the first; what has a file isn't done again."""
    tried = [_training(model, tokens, place, seeds[0], rate) for rate in place.budget.learning_rates]
    best = min(tried, key=lambda training: training.validation_loss)
    return [best, *(_training(model, tokens, place, seed, best.learning_rate) for seed in seeds[1:])]


def _training(model: str, tokens: Tokens, place: Place, seed: int, rate: float) -> Training:
    path = place.file(model, seed, rate)

    def make(draft: Path) -> None:
        learnt = learn(model, tokens, rate, place.budget, seed)
        test, left_out = tokens.of("test"), [""] if model in MODALITIES else list(ONLY)
        logits = {f"test-{m}": said(learnt.net, tokens, test, tuple(ONLY[m])).numpy() for m in left_out}
        torch.save(learnt.net.state_dict(), path.with_suffix(".pt"))
        told = {name: getattr(learnt, name) for name in ("validation_loss", "best_step", "seconds")}
        validation = said(learnt.net, tokens, tokens.of("validation")).numpy()
        with draft.open("wb") as file:
            np.savez(file, validation=validation, parameters=parameters_of(learnt.net), **told, **logits)

    make_once(path, make)
    with np.load(path) as found:
        return Training(
            model,
            seed,
            rate,
            validation_loss=float(found["validation_loss"]),
            best_step=int(found["best_step"]),
            seconds=float(found["seconds"]),
            parameters=int(found["parameters"]),
            validation=found["validation"],
            test={name.removeprefix("test-"): found[name] for name in found if name.startswith("test-")},
        )


def answered(training: Training, tokens: Tokens) -> dict[str, Answered]:
    """What a net says, calibrated on the validation items; three experts stand for two rungs."""
    labels = tokens.labels[tokens.of("validation")]
    if training.model == "late":
        found = {"log-linear": _log_linear(training, tokens), "stacked": _stacked(training, tokens)}
    else:
        scaled = vector_scaling(torch.from_numpy(training.validation), torch.from_numpy(labels))
        found = {training.model: {m: _softmax(scaled, logits) for m, logits in training.test.items()}}
    facts = training.learning_rate, training.seconds, training.parameters
    return {rung: Answered(*facts, probabilities) for rung, probabilities in found.items()}


def _log_linear(training: Training, tokens: Tokens) -> dict[str, Floats]:
    """Of experts that are calibrated each by itself, their evidence added."""
    rows, count = tokens.of("validation"), len(tokens.names)
    fusion = LogLinearFusion({m: Expert("softmax", tuple(range(count))) for m in MODALITIES}, count).double()
    there = (torch.from_numpy(tokens.counts) > 0).double()
    outputs, labels = torch.from_numpy(training.validation).double(), torch.from_numpy(tokens.labels[rows])
    by = fitted(fusion, CalibrationItems(outputs, there[rows], labels))
    return {
        m: softmax(_pooled(fusion, by, logits, there[tokens.of("test")] * torch.from_numpy(ONLY[m])))
        for m, logits in training.test.items()
    }


def _pooled(fusion: LogLinearFusion, by: Calibrated, logits: Floats, there: Tensor) -> Floats:
    pooled, _ = fusion.pooled(list(torch.from_numpy(logits).double().unbind(dim=1)), there, by)
    found: Floats = pooled.numpy()
    return found


def _stacked(training: Training, tokens: Tokens) -> dict[str, Floats]:
    """A small net over what experts say, in log-probabilities, learnt from the validation items; then calibrated on
    the same, as it has nothing else."""
    labels, count = tokens.labels[tokens.of("validation")], len(tokens.names)

    def read(logits: Floats) -> Tensor:
        return torch.from_numpy(logits).double().log_softmax(dim=-1)

    make = functools.partial(perceptron, len(MODALITIES) * count, 0.0, count, WIDTH)
    net = stacked(read(training.validation), torch.from_numpy(labels), lambda: make().double(), training.seed)
    return {m: softmax(net(read(logits).flatten(1)).detach().numpy()) for m, logits in training.test.items()}


def emap(training: Training, tokens: Tokens, place: Place) -> tuple[Floats, Floats, Floats]:
    """Of some test items: a net's probabilities, those of its additive projection over modalities, and labels."""
    rows = tokens.of("test")
    chosen = np.random.default_rng(0).permutation(rows)[:EMAP_ITEMS]
    net, items = place.net(training, len(tokens.names)), tokens.items(chosen)
    with torch.inference_mode():
        projected = Items(tuple(net.projected(items.features)), items.masks, items.labels)
        own, sum_of_parts = net.rung(projected.features, projected.masks), additive(net.rung, projected)
    labels = tokens.labels[tokens.of("validation")]
    scaled = vector_scaling(torch.from_numpy(training.validation), torch.from_numpy(labels))
    return _softmax(scaled, own.numpy()), _softmax(scaled, sum_of_parts.numpy()), tokens.labels[chosen]


def _softmax(scaled: Scaling, logits: Floats) -> Floats:
    return softmax(scaled(torch.from_numpy(logits)).numpy())
