"""A step: a gradient for whatever learns, the same in parts as at once; and the average of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.sources import WEIGHTS_FILE
from cmt_training.batches import Randomness, Reader, raw_sources
from cmt_training.fitting import task_of, without_idle
from cmt_training.options import MODELS, Model
from cmt_training.prepare import Prepared
from cmt_training.state import Average
from cmt_training.train import train
from cmt_training.trainee import Answers, Loss, Trainee, modalities_of
from small_training import OPTIONS, silent
from tiny_model import TINY


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_weight_that_learns_gets_a_gradient_in_every_step(model: Model, prepared: Prepared) -> None:
    """From items without one modality or two as well, which processes that wait for each other rely on."""
    options, reader = replace(OPTIONS, model=model), Reader(prepared, raw_sources(prepared))
    trainee = Trainee(
        checkpoint_from_preset(TINY.name, "meld", model=model).model, options, 7, features=False, cues=reader.cues()
    )
    task = task_of(trainee, reader, prepared, options)
    loss = Loss(options, reader.labels(task.training), 7)
    without_idle(task, loss)
    learning = {name for name, p in trainee.named_parameters() if p.requires_grad}
    read = {m for m, there in zip(("image", "audio", "text"), modalities_of(model), strict=True) if there}
    assert {name.split(".")[2] for name in learning if name.startswith("model.encoders.")} == read
    for number in (4, 9, 14):  # which lack one
        batch = reader.batch([task.training[number]], Randomness(0, number, 0.9, False), modalities_of(model))
        trainee.zero_grad()
        sums = loss(Answers(*trainee.train()(batch.inputs, batch.presence)), batch)
        torch.autograd.backward(loss.weigh(sums, loss.counts(batch)))
        assert {name for name, p in trainee.named_parameters() if p.grad is not None} == learning


def test_a_batch_in_parts_is_a_batch(prepared: Prepared, tmp_path: Path) -> None:
    options = replace(OPTIONS, model="text", epochs=2, learning_rate=1e-3)
    states = [train(prepared, replace(options, accumulate=n), tmp_path / str(n), silent) for n in (1, 3)]
    losses = [[row["training_loss"] for row in state.history] for state in states]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    weights = [load_file(tmp_path / str(n) / WEIGHTS_FILE) for n in (1, 3)]
    assert max(float((weights[0][k].float() - weights[1][k].float()).abs().max()) for k in weights[0]) < 1e-3


def test_the_average_follows_the_weights_and_steps_aside() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average, none = Average(module, 0.5), Average(module, 0.0)
    before = module.weight.item()
    with torch.no_grad():
        module.weight.fill_(10.0)
    average.update(1)  # at the beginning the decay is 2 / 11
    none.update(1)
    first = before * 2 / 11 + 10 * 9 / 11
    with average.in_place():
        assert module.weight.item() == pytest.approx(first)
    with none.in_place():
        assert module.weight.item() == 10.0
    for step in range(100, 160):
        average.update(step)
    with average.in_place():
        assert np.isclose(module.weight.item(), 10.0)
    assert module.weight.item() == 10.0
