"""Where a training stands after each epoch, so that it can go on: safetensors and JSON, nothing pickled.

    RUN/epoch-0003/tensors.safetensors   weights, optimizer, the best weights so far
    RUN/epoch-0003/progress.json         all that isn't a tensor

A folder appears whole or not at all, and the one before goes when it is there. No random state is kept, for none
outlives an epoch: see `cmt_training.batches`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TENSORS_FILE, PROGRESS_FILE = "tensors.safetensors", "progress.json"
OPTIMIZER = "optimizer"


@dataclass
class TrainState:
    """epoch: how many are done; best_epoch: 0 before the first; history: a row an epoch."""

    recipe: dict[str, Any]
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in vars(self).items() if key != "best"}, indent=1) + "\n"


def save_state(run: Path, state: TrainState, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes the state after `state.epoch` epochs and removes the one before."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter, values in optimizer.state.items():
        tensors |= {f"{OPTIMIZER}.{key}.{names[id(parameter)]}": tensor for key, tensor in values.items()}
    folder = run / f"epoch-{state.epoch:04d}"
    draft = run / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, draft / TENSORS_FILE)
    (draft / PROGRESS_FILE).write_text(state.to_json())
    draft.rename(folder)
    for other in _states(run):
        if other != folder:
            shutil.rmtree(other)


def load_state(
    run: Path, recipe: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainState | None:
    """Puts the newest state into module and optimizer. None where there is none.

    ValueError when it is of another recipe (options, data, versions of either).
    """
    from safetensors.torch import load_file

    for leftover in run.glob(".draft-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    states = _states(run)
    if not states:
        return None
    state = TrainState(**json.loads((states[-1] / PROGRESS_FILE).read_text()))
    if state.recipe != (expected := json.loads(json.dumps(recipe))):
        differ = sorted(key for key in {*expected, *state.recipe} if expected.get(key) != state.recipe.get(key))
        raise ValueError(
            f"{run} holds a training with other {', '.join(differ)}: "
            f"got { {key: state.recipe.get(key) for key in differ} }, "
            f"expected { {key: expected.get(key) for key in differ} }; name another folder, or train as it began"
        )
    tensors = load_file(states[-1] / TENSORS_FILE)
    module.load_state_dict(_under("model.", tensors))
    state.best = _under("best.", tensors)
    parameters = dict(module.named_parameters())
    for name, tensor in _under(f"{OPTIMIZER}.", tensors).items():
        key, _, parameter = name.partition(".")
        optimizer.state[parameters[parameter]][key] = tensor.to(parameters[parameter].device if tensor.ndim else "cpu")
    return state


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _states(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("epoch-*") if (path / PROGRESS_FILE).is_file())
