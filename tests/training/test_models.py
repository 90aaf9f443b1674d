"""Every model answers alike however it is padded and batched, and takes any subset of the modalities."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from cmt_export.baselines import LateFusion, fusion_of
from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH
from cmt_training.batches import Reader, raw_sources
from cmt_training.encoded import given_encoders
from cmt_training.options import MODELS, Model, TrainOptions
from cmt_training.predict import predict, predict_each
from cmt_training.prepare import Prepared
from cmt_training.trainee import Trainee, modalities_of
from tiny_model import TINY

TOLERANCE = 2e-5


def model_of(name: Model) -> CrossModalTransformer:
    return checkpoint_from_preset(TINY.name, "meld", model=name).model


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_neither_padding_nor_neighbours_decide(name: Model, prepared: Prepared) -> None:
    model, reader = model_of(name).eval(), Reader(prepared, raw_sources(prepared))
    indices = list(range(0, 16, 2))  # some lack a modality
    together = predict(model, reader, indices, only=modalities_of(name))
    for row, index in enumerate(indices):
        alone = predict(model, reader, [index], only=modalities_of(name))
        assert np.abs(alone.logits[0] - together.logits[row]).max() < TOLERANCE
        assert np.abs(alone.valence_arousal[0] - together.valence_arousal[row]).max() < TOLERANCE


@pytest.mark.parametrize("name", [*MODELS, "gated", "bottleneck"])
@torch.inference_mode()
def test_what_is_masked_is_never_read(name: str) -> None:
    torch.manual_seed(0)
    fusion = fusion_of(name, FusionSize(layers=2, heads=4, feed_forward_width=32), 5).eval()
    plain = {
        m: (torch.randn(2, n, MODEL_WIDTH), torch.ones(2, n, dtype=torch.int64))
        for m, n in zip(MODALITIES, (9, 7, 4), strict=True)
    }
    for subset in SUBSETS:
        masked = {m: (x, mask * (m in subset)) for m, (x, mask) in plain.items()}
        loud = {
            m: (
                torch.cat([x if m in subset else 1e3 * x, torch.full((2, 3, MODEL_WIDTH), 1e3)], 1),
                torch.cat([mask, torch.zeros(2, 3, dtype=torch.int64)], 1),
            )
            for m, (x, mask) in masked.items()
        }
        one, two = (fusion(*(t for m in MODALITIES for t in given[m])) for given in (masked, loud))
        for came, wanted in zip(one, two, strict=True):
            assert torch.isfinite(came).all()
            assert (came - wanted).abs().max() < TOLERANCE
        used = one[3].sum(dim=1)
        assert ((used - 1).abs() < 1e-5).all() or (name in MODALITIES and name not in subset and not used.any())


@torch.inference_mode()
def test_late_fusion_averages_the_probabilities_of_those_that_are_there() -> None:
    fusion = LateFusion(FusionSize(), 5).eval()
    features = [torch.randn(3, 6, MODEL_WIDTH) for _ in MODALITIES]
    masks = [torch.ones(3, 6, dtype=torch.int64) for _ in MODALITIES]
    masks[1][0] = 0
    separate = fusion.separate(features, masks)[0].softmax(-1)
    wanted = torch.stack([(separate[0, 0] + separate[0, 2]) / 2, *separate[1:].mean(dim=1)])
    probabilities = fusion(*(t for pair in zip(features, masks, strict=True) for t in pair))[1]
    assert (probabilities - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_model_of_one_modality_reads_no_other(modality: Modality, prepared: Prepared) -> None:
    model, reader = model_of(modality).eval(), Reader(prepared, raw_sources(prepared))
    indices = [i for i, item in enumerate(prepared.items) if all(item.has(m) for m in MODALITIES)][:4]
    onlys = [np.ones(3, np.int64), modalities_of(modality), 1 - modalities_of(modality)]
    whole, own, without = predict_each(model, reader, indices, onlys)
    assert np.abs(whole.logits - own.logits).max() < TOLERANCE
    assert np.ptp(without.logits, axis=0).max() < TOLERANCE  # the same answer to everything


def test_token_dropout_acts_in_training_alone(prepared: Prepared) -> None:
    reader = Reader(prepared, raw_sources(prepared))
    batch = reader.batch([0, 1, 2])
    trainee = Trainee(model_of("cmt"), TrainOptions(preset=TINY.name, token_dropout=0.5), 7, features=False)
    lengths = []
    trainee.model.encoders["image"].register_forward_hook(lambda *given: lengths.append(given[2][0].shape[1]))
    trainee.train()(batch.inputs, batch.presence)
    trainee.eval()(batch.inputs, batch.presence)
    assert lengths == [1 + 98, 197]


@pytest.mark.parametrize(("published", "kept"), [((), [98, 20, 9]), (("image", "text"), [197, 20, 9])])
def test_all_tokens_of_published_encoders_are_learnt_from(published: tuple[Modality, ...], kept: list[int]) -> None:
    inputs = {
        "pixel_values": torch.randn(2, 197, MODEL_WIDTH),
        "input_values": torch.randn(2, 40, MODEL_WIDTH),
        "num_samples": torch.full((2, 1), 40),
        "input_ids": torch.randn(2, 9, MODEL_WIDTH),
        "attention_mask": torch.ones(2, 9, dtype=torch.int64),
    }
    model = CrossModalTransformer(cast(Any, given_encoders()), model_of("concat").fusion)
    options, read = TrainOptions(preset=TINY.name, token_dropout=0.5), []
    model.fusion.register_forward_pre_hook(lambda _, given: read.append([each.shape[1] for each in given[::2]]))
    Trainee(model, options, 7, features=True, published=published).train()(inputs, torch.ones(2, 3))
    assert read == [kept]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model: got 'best'"):
        fusion_of("best", FusionSize(), 3)
    with pytest.raises(ValueError, match="model: got 'best'"):
        TrainOptions(model="best")  # type: ignore[arg-type]
