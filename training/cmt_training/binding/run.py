"""The ladder on the family: a net learns a kind at all its lengths, and is tested at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmt_export.attention import perceptron
from cmt_export.log_linear import Expert, LogLinearFusion
from cmt_pipeline.modality import MODALITIES
from cmt_training.binding.family import WIDTH, Items, Kind, drawn, items
from cmt_training.binding.fit import Budget, Task, answers, fit, loss_of, stacked
from cmt_training.binding.ladder import LABELS, made
from cmt_training.calibration import CalibrationItems, fitted
from cmt_training.conditions import conditions

LATE: tuple[str, ...] = ("log-linear", "stacked")
EMAP_ITEMS, EMAP_OTHERS = 256, 32  # projected, and pairs of others that each is averaged over


@dataclass(frozen=True)
class Reached:
    """What a model reached at a length. accuracies: on the test items, one a seed, by rung; emap: of its additive
    projection, one a seed, beside own: the model's on the same items."""

    length: int
    accuracies: Mapping[str, tuple[float, ...]]
    own: tuple[float, ...]
    emap: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """A model (of `ladder.MODELS`), trained on a task."""

    task: Task
    model: str
    learning_rate: float
    reached: tuple[Reached, ...]
    machine: str


@dataclass(frozen=True)
class _Data:
    """Of a seed, at a length."""

    validation: Items
    test: Items


def run(task: Task, model: str, budget: Budget, seeds: Sequence[int]) -> Trained:
    """Trains a model for every seed, at the learning rate that is best for the first."""
    data = [[_data(task.kind, length, budget, seed) for length in task.lengths] for seed in seeds]
    tried = {rate: _net(model, task, rate, budget, seeds[0]) for rate in budget.learning_rates}
    rate = min(tried, key=lambda rate: _loss(tried[rate], data[0]))
    nets = [tried[rate], *(_net(model, task, rate, budget, seed) for seed in seeds[1:])]
    by_length = zip(task.lengths, zip(*data, strict=True), strict=True)
    tested = tuple(_reached(length, model, nets, each, seeds) for length, each in by_length)
    return Trained(task, model, rate, tested, f"{conditions()['machine']}, PyTorch {torch.__version__}")


def _reached(
    length: int, model: str, nets: Sequence[nn.Module], data: Sequence[_Data], seeds: Sequence[int]
) -> Reached:
    """A net and its items for each seed."""
    tests = [given.test.of(slice(EMAP_ITEMS)) for given in data]
    if model == "late":
        late = [_late(net, given, seed) for net, given, seed in zip(nets, data, seeds, strict=True)]
        accuracies = {rung: tuple(each[rung] for each in late) for rung in LATE}
        own = emap = tuple(0.0 for _ in seeds)
    else:
        pairs = list(zip(nets, data, strict=True))
        accuracies = {model: tuple(_accuracy(answers(net, given.test), given.test.labels) for net, given in pairs)}
        own = tuple(_accuracy(answers(net, t), t.labels) for net, t in zip(nets, tests, strict=True))
        emap = tuple(_accuracy(additive(net, t), t.labels) for net, t in zip(nets, tests, strict=True))
    return Reached(length, accuracies, own, emap)


def additive(net: nn.Module, given: Items, seed: int = 0) -> Tensor:
    """The net's logits [items, labels] without interactions of modalities (EMAP, Hessel & Lee 2020, arXiv 2010.06572):
    the sum of what each modality says on average over the others, which are drawn from the items each by itself."""
    generator = torch.Generator().manual_seed(seed)
    count, parts = len(given), []
    for own in range(len(MODALITIES)):
        rows = [torch.randint(count, (count * EMAP_OTHERS,), generator=generator) for _ in MODALITIES]
        rows[own] = torch.arange(count).repeat_interleave(EMAP_OTHERS)
        mixed = Items(
            tuple(f[r] for f, r in zip(given.features, rows, strict=True)),
            tuple(m[r] for m, r in zip(given.masks, rows, strict=True)),
            given.labels[rows[own]],
        )
        parts.append(answers(net, mixed).reshape(count, EMAP_OTHERS, -1).mean(dim=1))
    means = torch.stack([part.mean(dim=0) for part in parts])
    return torch.stack(parts).sum(dim=0) - (len(MODALITIES) - 1) * means.mean(dim=0)


def _data(kind: Kind, length: int, budget: Budget, seed: int) -> _Data:
    whole = drawn(kind, length, budget.validation + budget.test, seed)
    held_out = items(whole, torch.Generator().manual_seed(seed))
    return _Data(held_out.of(slice(budget.validation)), held_out.of(slice(budget.validation, None)))


def _net(model: str, task: Task, rate: float, budget: Budget, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = made(model)
    fit(net, task, rate, budget, seed)
    return net.eval()


def _loss(net: nn.Module, data: Sequence[_Data]) -> float:
    return sum(float(loss_of(answers(net, each.validation), each.validation.labels)) for each in data)


def _late(experts: nn.Module, data: _Data, seed: int) -> dict[str, float]:
    """Accuracies of the two rungs that read three experts, fitted on the validation items."""
    validation, test = answers(experts, data.validation).double(), answers(experts, data.test).double()
    fusion = LogLinearFusion({m: Expert("softmax", tuple(range(LABELS))) for m in MODALITIES}, LABELS).double()
    there, labels = torch.ones(test.shape[:2], dtype=torch.float64), data.test.labels
    by = fitted(fusion, CalibrationItems(validation, there[: len(validation)], data.validation.labels))
    pooled, _ = fusion.pooled(list(test.unbind(dim=1)), there, by)
    inputs = len(MODALITIES) * LABELS
    net = stacked(validation, data.validation.labels, lambda: perceptron(inputs, 0.0, LABELS, WIDTH).double(), seed)
    return {"log-linear": _accuracy(pooled, labels), "stacked": _accuracy(net(test.flatten(1)), labels)}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
