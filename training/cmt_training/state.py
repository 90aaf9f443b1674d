"""Where a training stands, so that it can go on in as many processes as there are then: safetensors and JSON.

    RUN/epoch-0003/              after three epochs; epoch-0003-000200: 200 steps into the fourth
        tensors.safetensors      weights that are trained, their averages, the optimizer's, the best so far
        progress.json            all that isn't a tensor
    RUN/lock                     held by the process that trains

A folder appears whole or not at all, and the one before goes when it is there. No random state is kept, for none
outlives a step: see `cmt_training.batches`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmt_release.locks import Locked, only_holder
from cmt_training.distributed import World, as_shard_of, whole

TENSORS_FILE, PROGRESS_FILE, LOCK_FILE = "tensors.safetensors", "progress.json", "lock"
DRAFT = ".draft"
MODEL, BEST, AVERAGE, OPTIMIZER = "model", "best", "average", "optimizer"


@dataclass
class TrainState:
    """epoch: how many are done; step: how many of the next one's steps, whose losses' sum is `losses`; best_epoch: 0
    before the first; history: a row an epoch; scaler: of fp16's losses."""

    recipe: dict[str, Any]
    epoch: int = 0
    step: int = 0
    losses: float = 0.0
    best_epoch: int = 0
    best_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in vars(self).items() if key != BEST}, indent=1) + "\n"


class Average:
    """An exponential moving average of a module's trained weights; with a decay of 0, the weights themselves."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad and decay}
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step, counted from 1. The first steps weigh more, or the average would long be the beginning."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """In which the module has the average's weights."""
        self._swap()
        yield
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


@dataclass(frozen=True)
class Learning:
    """All that a step changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average
    scaler: torch.amp.grad_scaler.GradScaler

    def weights(self) -> dict[str, Tensor]:
        """Those that are trained, and buffers: whole, on the CPU."""
        stay = {n for n, p in self.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name: whole(t).clone() for name, t in self.module.state_dict().items() if name not in stay}

    def tensors(self) -> dict[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        found = {f"{MODEL}.{name}": tensor for name, tensor in self.weights().items()}
        found |= {f"{AVERAGE}.{name}": whole(tensor) for name, tensor in self.average.tensors.items()}
        for parameter, values in self.optimizer.state.items():
            found |= {f"{OPTIMIZER}.{key}.{names[id(parameter)]}": whole(tensor) for key, tensor in values.items()}
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """What `tensors` gave, in whichever number of processes."""
        own = self.module.state_dict()
        for name, tensor in _under(MODEL, tensors).items():
            own[name].copy_(as_shard_of(tensor, own[name]))
        for name, tensor in _under(AVERAGE, tensors).items():
            self.average.tensors[name].copy_(as_shard_of(tensor, self.average.tensors[name]))
        parameters = dict(self.module.named_parameters())
        for name, tensor in _under(OPTIMIZER, tensors).items():
            key, _, parameter = name.partition(".")
            like = parameters[parameter]
            self.optimizer.state[like][key] = as_shard_of(tensor, like) if tensor.ndim else tensor


@contextlib.contextmanager
def only_training(run: Path, world: World) -> Iterator[None]:
    """Holds `run` until the training in it ends, however it ends; on a file system without locks, not. ValueError
    while another one does."""
    with contextlib.ExitStack() as stack:
        if world.first:
            try:
                stack.enter_context(only_holder(run / LOCK_FILE))
            except Locked as error:
                raise ValueError(
                    f"process {error.holder} is training in {run}; wait until it has ended, or name another folder"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        yield


def save_state(run: Path, state: TrainState, learning: Learning, world: World) -> None:
    """Writes where training stands, in the first of the processes, and removes the state before."""
    tensors = learning.tensors() | {f"{BEST}.{name}": tensor for name, tensor in state.best.items()}
    state.scaler = learning.scaler.state_dict()
    if world.first:
        _write(run, state, tensors)
    world.wait()


def _write(run: Path, state: TrainState, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    folder = run / (f"epoch-{state.epoch:04d}" + (f"-{state.step:06d}" if state.step else ""))
    draft = run / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, draft / TENSORS_FILE)
    (draft / PROGRESS_FILE).write_text(state.to_json())
    draft.rename(folder)
    for other in _states(run):
        if other != folder:
            shutil.rmtree(other)


def load_state(run: Path, recipe: dict[str, Any], learning: Learning) -> TrainState | None:
    """Puts the newest state into what is learning. None where there is none.

    ValueError when it is of another recipe (options, data, versions of either).
    """
    from safetensors.torch import load_file

    shutil.rmtree(run / DRAFT, ignore_errors=True)
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
    learning.load(tensors)
    learning.scaler.load_state_dict(state.scaler)
    state.best = _under(BEST, tensors)
    return state


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def _states(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("epoch-*") if (path / PROGRESS_FILE).is_file())
