"""Two processes reach what one does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_export.checkpoint import load_checkpoint
from cmt_training.distributed import World
from cmt_training.prepare import Prepared
from cmt_training.train import train
from small_training import OPTIONS, command, environment, silent, without_times

#: No dropout within the networks: which process draws what would differ.
ALIKE = replace(OPTIONS, epochs=2, batch_size=7, learning_rate=1e-3, token_dropout=0.0)


def test_two_processes_are_as_one(prepared: Prepared, tmp_path: Path) -> None:
    train(prepared, ALIKE, tmp_path / "one", silent)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = command(prepared, tmp_path / "two", ALIKE)[1:]
    subprocess.run([*launcher, *child], env=environment(), check=True, timeout=240)
    one, two = (without_times(tmp_path / f"{name}.run") for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, abs=2e-3)
    states = [load_checkpoint(tmp_path / name).model.state_dict() for name in ("one", "two")]
    far = {k: float((states[0][k] - states[1][k]).abs().max()) for k in states[0]}
    assert max(far.values()) < 2e-3, sorted(far.items(), key=lambda item: -item[1])[:3]


def test_shares_are_the_whole_batch_and_an_empty_one_does_not_count() -> None:
    worlds = [World(rank, 3) for rank in range(3)]
    shares = [world.share([1, 2, 3, 4, 5]) for world in worlds]
    assert sorted(index for own, counts in shares for index in own if counts) == [1, 2, 3, 4, 5]
    assert [world.share([9, 8]) for world in worlds] == [([9], True), ([8], True), ([9], False)]
    assert replace(worlds[0], size=1).share([4]) == ([4], True)
