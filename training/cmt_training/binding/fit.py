"""Trains a small net on items that are new in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_training.binding.family import Items, Kind, drawn, items
from cmt_training.fitting import share_of_peak
from cmt_training.options import TrainOptions

BETAS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.98), 1e-4, 1.0
AGAIN = 4  # of so many steps one goes back to a shorter length


@dataclass(frozen=True)
class Task:
    """A kind at the lengths that a net is trained on, growing."""

    kind: Kind
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """Of every rung alike. steps: for each length; learning_rates: each is tried with the first seed, that of the least
    loss on its validation items kept."""

    steps: int = 1500
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    validation: int = 1024
    test: int = 2048


def fit(net: nn.Module, task: Task, rate: float, budget: Budget, seed: int) -> None:
    """Trains a net in place by AdamW: linear warm-up, then half a cosine to 0."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    options, generator = TrainOptions(), torch.Generator().manual_seed(seed)
    for step, length in enumerate(lengths := list(turns(task.lengths, budget.steps)), 1):
        new = items(drawn(task.kind, length, budget.batch_size, seed, step), generator)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_of(net(new.features, new.masks), new.labels))
        nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
        for group in optimizer.param_groups:
            group["lr"] = rate * share_of_peak(step, len(lengths), options)
        optimizer.step()


def turns(lengths: Sequence[int], steps: int) -> Iterator[int]:
    """The length of each step: one after another, as what is learnt of short sentences serves for longer ones."""
    for number, length in enumerate(lengths):
        for step in range(steps):
            back = number > 0 and step % AGAIN == 0
            yield lengths[step // AGAIN % number] if back else length


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits [items, labels], or of several experts [items, experts, labels]: the mean of theirs."""
    experts = logits[0].numel() // logits.shape[-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.repeat_interleave(experts))


@torch.no_grad()
def answers(net: nn.Module, items: Items, batch: int = 512) -> Tensor:
    """Logits of all items."""
    parts = [slice(start, start + batch) for start in range(0, len(items), batch)]
    return torch.cat([net([f[rows] for f in items.features], [m[rows] for m in items.masks]) for rows in parts])


def stacked(logits: Tensor, labels: Tensor, make: Callable[[], nn.Module], seed: int, steps: int = 100) -> nn.Module:
    """A net over what experts say of the items [items, experts, labels], by L-BFGS with a pull of weights towards 0."""
    torch.manual_seed(seed)
    net = make()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=steps, line_search_fn="strong_wolfe")
    features = logits.flatten(1)

    def closure() -> float:
        optimizer.zero_grad()
        pull = sum((p.square().sum() for p in net.parameters()), torch.zeros(()))
        value = functional.cross_entropy(net(features), labels) + pull / len(labels)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return net
