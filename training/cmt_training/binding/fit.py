"""Trains small nets of one shape side by side, each on items and at a learning rate of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmt_pipeline.modality import MODALITIES
from cmt_training.binding.family import Drawn, Items, shown

BETAS, EPSILON, WEIGHT_DECAY = (0.9, 0.98), 1e-8, 1e-4
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Budget:
    """Of every rung alike. steps: at each length; learning_rates: each is tried for every seed, the best on their
    validation items kept."""

    steps: int = 1000
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    warm_up: float = 0.1
    validation: int = 1024
    test: int = 2048


def fit(
    nets: Sequence[nn.Module], given: Sequence[Sequence[Drawn]], rates: Sequence[float], budget: Budget, seed: int
) -> Sequence[nn.Module]:
    """Trains the nets in place, without dropout, by AdamW: linear warm-up, then half a cosine to 0.

    given: of each net, the items of each length. Lengths take turns, so that what is learnt of short sentences serves
    for longer ones; every step has new items.
    """
    device = given[0][0].marks.device
    base, generator = nets[0].eval(), torch.Generator(device).manual_seed(seed)
    stacked_parameters, buffers = stack_module_state([net.eval() for net in nets])
    flat, parameters = _flat(stacked_parameters)

    def loss(own: dict[str, Tensor], rest: dict[str, Tensor], features: Tensor, labels: Tensor) -> Tensor:
        masks = [torch.ones(features.shape[0], features.shape[2], dtype=torch.int64, device=device)] * len(MODALITIES)
        return loss_of(functional_call(base, (own, rest), (features.unbind(dim=1), masks)), labels)

    gradients_of = vmap(grad(loss))
    adam = _Adam(flat, torch.tensor(rates, device=device))
    steps = budget.steps * len(given[0])
    for step in range(steps):
        turn, length = divmod(step, len(given[0]))
        rows = slice(turn * budget.batch_size, (turn + 1) * budget.batch_size)
        features = shown(torch.stack([each[length].marks[rows] for each in given]), generator)
        labels = torch.stack([each[length].labels[rows] for each in given])
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows on a CPU
            gradients = gradients_of(parameters, buffers, features, labels)
        share = _share_of_peak(step, steps, budget.warm_up)
        adam.step(torch.cat([gradients[name].flatten(1) for name in parameters], dim=1), share)
    for index, net in enumerate(nets):
        net.load_state_dict({name: tensor[index] for name, tensor in {**parameters, **buffers}.items()})
    return nets


def _flat(parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Parameters [nets, ...] -> all of them [nets, parameters], and views of it by their names."""
    flat = torch.cat([parameter.detach().flatten(1) for parameter in parameters.values()], dim=1)
    parts = torch.split(flat, [parameter[0].numel() for parameter in parameters.values()], dim=1)
    return flat, {n: part.view(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}


def _share_of_peak(step: int, steps: int, warm_up: float) -> float:
    return min((step + 1) / max(1, round(warm_up * steps)), (1 + math.cos(math.pi * step / steps)) / 2)


class _Adam:
    """AdamW of nets [nets, parameters], each clipped by its own norm."""

    def __init__(self, parameters: Tensor, rates: Tensor) -> None:
        self.parameters, self.rates, self.count = parameters, rates[:, None], 0
        self.mean, self.square = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def step(self, gradients: Tensor, share: float) -> None:
        self.count += 1
        gradients = gradients * (CLIP_NORM / gradients.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        self.mean.lerp_(gradients, 1 - BETAS[0])
        self.square.lerp_(gradients.square(), 1 - BETAS[1])
        mean, square = self.mean / (1 - BETAS[0] ** self.count), self.square / (1 - BETAS[1] ** self.count)
        update = mean / (square.sqrt() + EPSILON) + WEIGHT_DECAY * self.parameters
        self.parameters.sub_(share * self.rates * update)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits [items, labels], or of several experts [items, experts, labels]: the mean of theirs."""
    experts = logits[0].numel() // logits.shape[-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.repeat_interleave(experts))


@torch.no_grad()
def answers(net: nn.Module, items: Items, batch: int = 512) -> Tensor:
    """Logits of all items."""
    net.to(items.labels.device)
    parts = [slice(start, start + batch) for start in range(0, len(items), batch)]
    return torch.cat([net([f[rows] for f in items.features], [m[rows] for m in items.masks]) for rows in parts])


def stacked(logits: Tensor, labels: Tensor, make: Callable[[], nn.Module], seed: int, steps: int = 100) -> nn.Module:
    """A net over what experts say of the items [items, experts, labels], by L-BFGS with a pull of weights towards 0."""
    torch.manual_seed(seed)
    net = make().to(logits.device)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=steps, line_search_fn="strong_wolfe")
    features = logits.flatten(1)

    def closure() -> float:
        optimizer.zero_grad()
        pull = sum((p.square().sum() for p in net.parameters()), torch.zeros((), device=features.device))
        value = functional.cross_entropy(net(features), labels) + pull / len(labels)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return net
