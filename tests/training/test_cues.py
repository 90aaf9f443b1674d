"""Cues: standardised over the training items, counted only where they are, and thrown away with their heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmt_export.checkpoint import checkpoint_from_preset
from cmt_training.batches import Reader, raw_sources, standard_cues
from cmt_training.prepare import Prepared
from cmt_training.trainee import Answers, Loss, Trainee
from small_training import OPTIONS
from tiny_model import TINY

CUES = 3  # their place among the loss's terms


def loss_of(prepared: Prepared, reader: Reader, *, cues: bool) -> tuple[torch.Tensor, torch.Tensor]:
    checkpoint = checkpoint_from_preset(TINY.name, "meld")
    trainee = Trainee(checkpoint.model, OPTIONS, 7, features=False, cues=reader.cues() if cues else None).train()
    batch = reader.batch(range(10))
    answers = Answers(*trainee(batch.inputs, batch.presence))
    loss = Loss(OPTIONS, reader.labels(prepared.of("train")), 7)
    return loss(answers, batch).detach(), loss.counts(batch)


def test_cues_are_standard_over_the_training_items(prepared: Prepared) -> None:
    found = standard_cues(prepared.items, "image")
    assert found is not None
    training = found[[item.split == "train" and bool(item.cues) for item in prepared.items]]
    assert np.allclose(training[:, 0].mean(), 0, atol=1e-5)
    assert np.allclose(training[:, 0].std(), 1, atol=1e-3)
    assert np.allclose(training[:, 1], 0)  # the same for all
    assert np.isnan(found[[not item.cues for item in prepared.items]]).all()


def test_data_without_cues_has_none(prepared: Prepared) -> None:
    assert standard_cues(prepared.items, "audio") is None
    assert Reader(prepared, raw_sources(prepared)).cues() == {"image": 2}


def test_only_what_is_there_counts(prepared: Prepared) -> None:
    reader = Reader(prepared, raw_sources(prepared))
    sums, counts = loss_of(prepared, reader, cues=True)
    assert float(counts[CUES]) == sum(bool(item.cues) for item in prepared.items[:10]) < 10
    assert float(sums[CUES]) > 0
    sums, _ = loss_of(prepared, reader, cues=False)
    assert float(sums[CUES]) == 0


def test_their_weight_can_be_nothing(prepared: Prepared) -> None:
    reader = Reader(prepared, raw_sources(prepared))
    trainee = Trainee(
        checkpoint_from_preset(TINY.name, "meld").model,
        replace(OPTIONS, cues=0.0),
        7,
        features=False,
        cues=reader.cues(),
    )
    assert not len(trainee.cues)


@pytest.mark.parametrize("model", ["cmt", "late"])
def test_the_model_keeps_nothing_of_them(model: str, prepared: Prepared) -> None:
    checkpoint = checkpoint_from_preset(TINY.name, "meld", model=model)
    names = set(checkpoint.model.state_dict())
    Trainee(checkpoint.model, OPTIONS, 7, features=False, cues={"image": 2})
    assert set(checkpoint.model.state_dict()) == names
