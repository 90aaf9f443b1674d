"""Trainings in several processes at once, forked from one that has everything imported: quicker than torchrun's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

import cmt_training.tuning
import tiny_model  # noqa: F401  # a preset that is known by its name
from cmt_training.distributed import PeerLost, world_of_environment
from cmt_training.options import TrainOptions
from cmt_training.prepare import open_prepared
from cmt_training.train import train

TIMEOUT_S = 240
PRELOADED = [__name__, "peft", "torch.utils.tensorboard.writer", "torch.distributed.fsdp"]


class Stopped(Exception):
    """Before a training's end."""


def train_in(
    size: int, data: Path, out: Path, options: TrainOptions, *, resume: bool = False, stop: float | None = None
) -> None:
    """Trains in so many processes, as if torchrun had started them; and until this share of all steps, if any."""
    with training_in(size, data, out, options, resume=resume, stop=stop) as processes:
        for process in processes:
            process.join(TIMEOUT_S)
        assert [process.exitcode for process in processes] == [0] * size


@contextlib.contextmanager
def training_in(
    size: int, data: Path, out: Path, options: TrainOptions, *, resume: bool = False, stop: float | None = None
) -> Iterator[list[BaseProcess]]:
    """The processes of such a training; killed in the end."""
    with _processes(size, _train, data, out, options, resume, stop) as processes:
        yield processes


@contextlib.contextmanager
def meeting_in(size: int, patience: timedelta, into: Path) -> Iterator[list[BaseProcess]]:
    """Processes that exchange sums without end; one whose peer is lost writes why to `into`, named by its rank."""
    with _processes(size, _meet, patience, into) as processes:
        yield processes


@contextlib.contextmanager
def _processes(size: int, target: Callable[..., None], *arguments: object) -> Iterator[list[BaseProcess]]:
    """That run target(rank, size, the port of their store, *arguments); killed in the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    places = [(rank, size, store.port) for rank in range(size)]
    processes: list[BaseProcess] = [context.Process(target=target, args=(*place, *arguments)) for place in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the process that forks
        for process in processes:
            process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _meet(rank: int, size: int, port: int, patience: timedelta, into: Path) -> None:
    _as_torchrun(rank, size, port)
    try:
        with world_of_environment(patience) as world:
            while True:
                world.total(torch.ones(1))
                (into / f"met-{rank}").touch()
    except PeerLost as error:
        (into / str(rank)).write_text(str(error))


def _as_torchrun(rank: int, size: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # as torchrun does: the store is the parent's
    }


def _train(
    rank: int, size: int, port: int, data: Path, out: Path, options: TrainOptions, resume: bool, stop: float | None
) -> None:
    """Without what is drawn at random within networks: which process draws what would differ."""
    cmt_training.tuning.LORA_DROPOUT = cmt_training.tuning.MASKED_SHARE = 0  # type: ignore[assignment]
    _as_torchrun(rank, size, port)

    def progress(what: str, done: float) -> None:
        if stop is not None and what.startswith("epoch") and done >= stop:
            raise Stopped

    try:
        with world_of_environment() as world:
            train(open_prepared(data), options, out, progress, resume=resume, world=world)
    except Stopped:
        assert stop is not None
