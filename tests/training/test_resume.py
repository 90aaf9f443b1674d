"""A training that was killed goes on to the very same result."""

from __future__ import annotations

import errno
import fcntl
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cmt_export.sources import WEIGHTS_FILE
from cmt_release.locks import make_once
from cmt_training.predict import ALONE
from cmt_training.prepare import Prepared
from cmt_training.state import LOCK_FILE, only_training
from cmt_training.train import train
from several_processes import training_in
from small_training import OPTIONS, silent, without_times

LONGER = replace(OPTIONS, epochs=6, patience=6, save_every=1)


@pytest.mark.long
def test_killed_and_resumed_is_as_if_never_killed(prepared: Prepared, tmp_path: Path) -> None:
    run = tmp_path / "killed.run"
    with training_in(1, prepared.folder, tmp_path / "killed", LONGER) as (child,):
        deadline = time.monotonic() + 600
        while not [*run.glob("epoch-*")] and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
    assert [*run.glob("epoch-*")]
    assert not (tmp_path / "killed").exists()
    threads = torch.get_num_threads()
    try:
        train(prepared, LONGER, tmp_path / "killed", silent, resume=True)
        train(prepared, LONGER, tmp_path / "whole", silent)
    finally:
        torch.set_num_threads(threads)
    one, two = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("killed", "whole"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    histories = [without_times(folder) for folder in (run, tmp_path / "whole.run")]
    assert histories[0] == [pytest.approx(row, rel=1e-6) for row in histories[1]]  # temperatures are searched for


def test_a_half_written_state_is_passed_over(prepared: Prepared, tmp_path: Path) -> None:
    options = replace(OPTIONS, model="text", epochs=2)
    train(prepared, options, tmp_path / "a", silent)
    (tmp_path / "a").rename(tmp_path / "first")
    (tmp_path / "a.run" / "epoch-0009").mkdir()  # as a removal that was cut short leaves it
    (tmp_path / "a.run" / ".draft").mkdir()
    (tmp_path / "a.run" / ".draft" / "tensors.safetensors").write_text("half")
    state = train(prepared, options, tmp_path / "a", silent, resume=True)
    assert state.epoch == 2
    assert not (tmp_path / "a.run" / ".draft").exists()
    assert (tmp_path / "a" / WEIGHTS_FILE).read_bytes() == (tmp_path / "first" / WEIGHTS_FILE).read_bytes()


def test_two_dont_train_in_one_place(prepared: Prepared, tmp_path: Path) -> None:
    """Nobody's state is overwritten by a second one that was started by mistake; once the first has ended, it may."""
    run = tmp_path / "a.run"
    lock = run / LOCK_FILE
    with training_in(1, prepared.folder, tmp_path / "a", LONGER) as (child,):
        deadline = time.monotonic() + 600
        while not (lock.is_file() and lock.read_text()) and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)  # who holds it writes who it is
        with pytest.raises(ValueError, match=f"process {child.pid} is training in {run}; wait until it has ended"):
            train(prepared, LONGER, tmp_path / "a", silent, resume=True)
    with only_training(run, ALONE):
        pass


def test_a_file_system_without_locks_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    make_once(tmp_path / "cache", Path.mkdir)
    with only_training(tmp_path / "run", ALONE):
        assert (tmp_path / "cache").is_dir()
