"""One process, or several that torchrun started: each takes its share of every batch.

Weights lie whole in every process (DistributedDataParallel), or those of the encoders in parts (FSDP2); all else is the
same: on CPU and GPU, in one process and in many.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

CPU = torch.device("cpu")
#: How long a process waits for what another has to send; the longest that one does meanwhile is to write a state.
PATIENCE = timedelta(minutes=30)
POLL_S = 0.5


class PeerLost(RuntimeError):
    """Another process of this training has ended, or isn't heard of any more."""

    exit_status = os.EX_TEMPFAIL  # 75, by which k8s/training tells it from a failure of this one


@dataclass(frozen=True)
class World:
    """rank: which of `size` processes this is; device: what it computes on; store: what they tell each other by."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    store: Store | None = None
    _turns: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: Sequence[int]) -> tuple[list[int], bool]:
        """This process's items of a batch. Where none are left for it, the first, which then doesn't count."""
        own = list(batch[self.rank :: self.size])
        return (own, True) if own else (list(batch[:1]), False)

    def total(self, tensor: Tensor) -> Tensor:
        """Summed over the processes."""
        if self.size > 1:
            tensor = tensor.contiguous()
            distributed.all_reduce(tensor)
        return tensor

    def first_alone(self, make: Callable[[], T]) -> T:
        """`make` in the first process, however long it takes, then in the others, which find what it left on disk."""
        if self.store is None:
            return make()
        made, done = None, f"first_alone/{next(self._turns)}"
        if self.first:
            made = make()
            self.store.set(done, "")
        while not self.store.check([done]):
            time.sleep(POLL_S)
        if made is None:
            made = make()
        self.wait()
        return made

    def wait(self) -> None:
        if self.size > 1:
            distributed.barrier()


@contextlib.contextmanager
def world_of_environment(patience: timedelta = PATIENCE) -> Iterator[World]:
    """The world that torchrun describes in the environment; without it, this process alone. Raises PeerLost."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _peers_lost(patience):
        store, rank, size = next(rendezvous("env://", timeout=patience))
        backend = "nccl" if device.type == "cuda" else "gloo"
        group = PrefixStore("group", store)
        distributed.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=patience)
        try:
            yield World(rank, size, device, store)
        finally:
            distributed.destroy_process_group()


@contextlib.contextmanager
def _peers_lost(patience: timedelta) -> Iterator[None]:
    """The one seam where what gloo, NCCL and the store raise becomes PeerLost; gloo has no kind of its own."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise PeerLost(
            f"another process of this training has ended, or not answered for {patience.total_seconds():g} s; its own "
            f"log says why. Go on with --resume. ({str(error).splitlines()[0]})"
        ) from error


class Whole:
    """A module as every process has it. Gradients are averaged over the processes once a step."""

    def __init__(self, module: nn.Module, world: World) -> None:
        """Moves the module to the world's device."""
        self.module = module.to(world.device)
        self._call: nn.Module = self.module
        if world.size > 1:
            self._call = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def __call__(self, *inputs: object) -> tuple[Any, ...]:
        answer: tuple[Any, ...] = self._call(*inputs)
        return answer

    @contextlib.contextmanager
    def part_of_step(self, *, last: bool) -> Iterator[None]:
        """In which one part of a step is computed, forward and backward; after the last, gradients are averaged."""
        if last or not isinstance(self._call, DistributedDataParallel):
            yield
        else:
            with self._call.no_sync():
                yield


class Sharded(Whole):
    """A copy of a module, some of whose parts lie in shards; the module itself stays as it is.

    A shard's optimizer state and gradients are a shard too, and a part is whole only while it computes. Every process
    has to run every part equally often.
    """

    def __init__(self, module: nn.Module, world: World, parts_of: Callable[[nn.Module], Sequence[nn.Module]]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        copied = copy.deepcopy(module)
        mesh = init_device_mesh(world.device.type, (world.size,))
        self._parts = [fully_shard(part, mesh=mesh, reshard_after_forward=True) for part in parts_of(copied)]
        self._size = world.size
        self.module = self._call = copied.to(world.device)

    @contextlib.contextmanager
    def part_of_step(self, *, last: bool) -> Iterator[None]:
        for part in self._parts:
            part.set_requires_gradient_sync(last)
        yield
        if last:
            for parameter in self.module.parameters():
                if parameter.grad is not None and not isinstance(parameter, DTensor):
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self._size


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, gathered from all processes where it lies in shards; every one of them has to ask."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def as_shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: on its device, and in shards where it is."""
    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


@torch.no_grad()
def clip(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scales gradients down to a norm of at most so much over all of them, in shards or whole."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (False, True)]
    norms = [whole(nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    scale = most / (torch.stack(norms).norm() + 1e-6)
    if scale < 1:
        for gradient in gradients:
            gradient.mul_(float(scale))
