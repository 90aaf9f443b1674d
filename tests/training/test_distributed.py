"""However many processes train, and however often their number changes on the way: the result is that of one."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
from cmt_training.distributed import World, clip
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared, prepare
from published import preset_file, write_config
from several_processes import meeting_in, train_in
from small_corpus import small_corpus
from small_training import OPTIONS, silent, without_times

#: No dropout within the networks: which process draws what would differ.
ALIKE = replace(OPTIONS, epochs=2, batch_size=7, learning_rate=1e-3, token_dropout=0.0)
NO_DROPOUT = {
    "image": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "audio": dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
    "text": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """Of published encoders; 5, 5 and 2 items an epoch, in two parts: the last has none left for a second process."""
    folder = tmp_path_factory.mktemp("published")
    preset = preset_file(folder, {})
    for m, values in NO_DROPOUT.items():
        write_config(folder / m, **values)
    preset.write_text(preset.read_text() + "dropout = 0.0\n")
    tuned = replace(ALIKE, preset=str(preset), tune_learning_rate=1e-3, ema=0.9)
    return replace(tuned, batch_size=5, accumulate=2, save_every=2)


@pytest.fixture(scope="module")
def data(tuned: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    checkpoint, folder = checkpoint_from_preset(tuned.preset, "meld"), tmp_path_factory.mktemp("few")
    few = small_corpus(folder / "corpus", (12, 3, 3))
    return prepare(few, checkpoint.config.preprocess, checkpoint.tokenizer, folder, silent)


def assert_alike(one: Path, two: Path) -> None:
    """Two checkpoints and the histories of their trainings."""
    for row, other in zip(*(without_times(path.with_name(f"{path.name}.run")) for path in (one, two)), strict=True):
        assert row == pytest.approx(other, abs=2e-3)
    states = [load_checkpoint(path).model.state_dict() for path in (one, two)]
    far = {k: float((states[0][k] - states[1][k]).abs().max()) for k in states[0]}
    assert max(far.values()) < 2e-3, sorted(far.items(), key=lambda item: -item[1])[:3]


@pytest.mark.long
def test_two_processes_are_as_one(prepared: Prepared, tmp_path: Path) -> None:
    train_in(1, prepared.folder, tmp_path / "one", ALIKE)
    train_in(2, prepared.folder, tmp_path / "two", ALIKE)
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize(("tune", "shard"), [("lora", False), ("full", True)])
def test_the_number_of_processes_may_change(
    tune: str, shard: bool, data: Prepared, tuned: TrainOptions, tmp_path: Path
) -> None:
    """Two, stopped within an epoch; one, stopped within the next; two again. shard: whose encoders lie in shards."""
    options, one, out = replace(tuned, tune=tune), tmp_path / "one", tmp_path / "several"
    train_in(1, data.folder, one, options)
    train_in(2, data.folder, out, replace(options, shard=shard), stop=0.3)
    states = [path.name for path in (tmp_path / "several.run").glob("epoch-*")]
    assert states == ["epoch-0000-000002"]
    train_in(1, data.folder, out, options, resume=True, stop=0.8)
    assert [path.name for path in (tmp_path / "several.run").glob("epoch-*")] == ["epoch-0001-000002"]
    train_in(2, data.folder, out, replace(options, shard=shard), resume=True)
    assert_alike(one, out)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_or_not_heard_of_is_told_of(how: signal.Signals, tmp_path: Path) -> None:
    """Stopped, it is as on a node that lost its power: its connections stay, and nothing comes."""
    with meeting_in(2, timedelta(seconds=5), tmp_path) as processes:
        while not all((tmp_path / f"met-{rank}").exists() for rank in range(2)):
            assert all(process.is_alive() for process in processes)
            time.sleep(0.05)
        os.kill(processes[1].pid or 0, how)
        processes[0].join(60)
    assert "another process of this training has ended, or not answered for 5 s" in (tmp_path / "0").read_text()


def test_shares_are_the_whole_batch_and_an_empty_one_does_not_count() -> None:
    worlds = [World(rank, 3) for rank in range(3)]
    shares = [world.share([1, 2, 3, 4, 5]) for world in worlds]
    assert sorted(index for own, counts in shares for index in own if counts) == [1, 2, 3, 4, 5]
    assert [world.share([9, 8]) for world in worlds] == [([9], True), ([8], True), ([9], False)]
    assert replace(worlds[0], size=1).share([4]) == ([4], True)


def test_gradients_are_clipped_as_torch_does() -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)] for _ in range(2))
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn(p.shape)
        q.grad = p.grad.clone()
    clip(ours, 0.5)
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert all(torch.allclose(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))
    before = [p.grad.clone() for p in ours]
    clip(ours, 1.0)
    assert all(torch.equal(p.grad, kept) for p, kept in zip(ours, before, strict=True))
