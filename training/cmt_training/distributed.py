"""One process, or several that torchrun started: each takes its share of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """rank: which of `size` processes this is; device: what it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

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
        """`make` in the first process, then in the others, which find what it left on disk."""
        made = make() if self.first else None
        self.wait()
        if made is None:
            made = make()
        self.wait()
        return made

    def wait(self) -> None:
        if self.size > 1:
            distributed.barrier()


@contextlib.contextmanager
def world_of_environment() -> Iterator[World]:
    """The world that torchrun describes in the environment; without it, this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1:
        yield World(device=device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()
