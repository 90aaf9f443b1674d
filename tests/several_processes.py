"""Trainings in several processes at once, forked from one that has everything imported: quicker than torchrun's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch.distributed import TCPStore

import cmt_training.tuning
import tiny_model  # noqa: F401  # a preset that is known by its name
from cmt_training.distributed import world_of_environment
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (size, store.port, data, out, options, resume, stop)
    processes: list[BaseProcess] = [context.Process(target=_train, args=(rank, *arguments)) for rank in range(size)]
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


def _train(
    rank: int, size: int, port: int, data: Path, out: Path, options: TrainOptions, resume: bool, stop: float | None
) -> None:
    """Without what is drawn at random within networks: which process draws what would differ."""
    cmt_training.tuning.LORA_DROPOUT = cmt_training.tuning.MASKED_SHARE = 0  # type: ignore[assignment]
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # as torchrun does: the store is the parent's
    }

    def progress(what: str, done: float) -> None:
        if stop is not None and what.startswith("epoch") and done >= stop:
            raise Stopped

    try:
        with world_of_environment() as world:
            train(open_prepared(data), options, out, progress, resume=resume, world=world)
    except Stopped:
        assert stop is not None
