"""The model in PyTorch: padding, neighbours and absent modalities have no say in an answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_export.encoders import AudioEncoder, frame_count, masked_group_norm
from cmt_export.family import FAMILIES
from cmt_export.fusion import CrossModalFusion
from cmt_export.model import CrossModalTransformer, absent_like, run_model, run_stage
from cmt_pipeline.buckets import AUDIO_SAMPLES, TEXT_TOKENS, bucket_for, frames_of
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.preprocess import collate
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.stages import FUSE, STAGES
from cmt_pipeline.tensors import MODEL_WIDTH, Array

LENGTHS = (1_600, 9_999, 16_000, 16_001, 40_000, 64_000, 100_000, 256_000)
#: Wav2Vec2's two flavours: a GroupNorm after the first convolution, or a LayerNorm after each (as in its large models).
FLAVOURS: dict[str, dict[str, Any]] = {
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
flavours = pytest.mark.parametrize("flavour", FLAVOURS)


def wav2vec2(flavour: str) -> Wav2Vec2Model:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        **FLAVOURS[flavour],
    )
    return Wav2Vec2Model(config).eval()


def without_projection(flavour: str) -> AudioEncoder:
    """Our encoder around a backbone of the same weights, ending where transformers' own model ends."""
    encoder = AudioEncoder(wav2vec2(flavour)).eval()
    encoder.projection = nn.Identity()  # type: ignore[assignment]
    return encoder


def sound(samples: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, samples)).astype(np.float32))


def padded(clip: Tensor, samples: int, padding: float = 0.0) -> Tensor:
    return nn.functional.pad(clip, (0, samples - clip.shape[1]), value=padding)


def difference(came: Tensor, wanted: Tensor) -> float:
    return float((came - wanted).abs().max())


@flavours
@pytest.mark.parametrize("samples", [400, *LENGTHS])
@torch.inference_mode()
def test_audio_features_are_those_of_transformers(flavour: str, samples: int) -> None:
    features, mask = without_projection(flavour)(sound(samples), torch.tensor([[samples]]))
    wanted = wav2vec2(flavour)(sound(samples)).last_hidden_state
    assert features.shape == wanted.shape
    assert mask.tolist() == [[1] * frames_of(samples)]
    assert difference(features, wanted) < 1e-4


@flavours
@pytest.mark.parametrize("bucket", AUDIO_SAMPLES)
@torch.inference_mode()
def test_padding_of_audio_changes_nothing(flavour: str, bucket: int) -> None:
    encoder = without_projection(flavour)
    for samples in [length for length in LENGTHS if length <= bucket][-3:]:
        count = torch.tensor([[samples]])
        alone, _ = encoder(sound(samples), count)
        frames = frames_of(samples)
        for padding in (0.0, 100.0):
            features, mask = encoder(padded(sound(samples), bucket, padding), count)
            assert mask.tolist() == [[1] * frames + [0] * (frames_of(bucket) - frames)]
            assert difference(features[:, :frames], alone) < 1e-4


@torch.inference_mode()
def test_padding_does_change_what_transformers_makes() -> None:
    """The hazard, and that the tests above would notice it: its mask doesn't reach the GroupNorm."""
    backbone = wav2vec2("group")
    alone = backbone(sound(16_000)).last_hidden_state
    mask = padded(torch.ones(1, 16_000), 32_000).long()
    together = backbone(padded(sound(16_000), 32_000), attention_mask=mask).last_hidden_state
    assert difference(together[:, : alone.shape[1]], alone) > 1e-2


@flavours
@torch.inference_mode()
def test_clips_of_a_batch_dont_meet(flavour: str) -> None:
    encoder = without_projection(flavour)
    lengths = [5_000, 16_000, 20_000]
    batch = torch.cat([padded(sound(n, seed), 32_000) for seed, n in enumerate(lengths)])
    features, _ = encoder(batch, torch.tensor(lengths)[:, None])
    for row, (seed, samples) in zip(features, enumerate(lengths), strict=True):
        alone, _ = encoder(sound(samples, seed), torch.tensor([[samples]]))
        assert difference(row[: frames_of(samples)], alone[0]) < 1e-4


@given(st.lists(st.integers(1, 256_000), min_size=1))
def test_frames_are_counted_alike_in_tensors(samples: list[int]) -> None:
    counted = frame_count(torch.tensor(samples)[:, None])
    assert counted[:, 0].tolist() == [frames_of(max(n, 400)) for n in samples]


@torch.inference_mode()
def test_masked_group_norm_is_group_norm_of_what_is_real() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(6, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    hidden = torch.randn(2, 6, 50) * 3 + 1
    normed = masked_group_norm(hidden, norm, torch.tensor([[50], [20]]))
    assert difference(normed[:1], norm(hidden[:1])) < 1e-5
    assert difference(normed[1:, :, :20], norm(hidden[1:, :, :20])) < 1e-5
    with pytest.raises(ValueError, match="got 3 groups of 6 channels"):
        masked_group_norm(hidden, nn.GroupNorm(3, 6), torch.tensor([[50], [20]]))


def test_convolutions_that_the_contract_doesnt_know_are_refused() -> None:
    with pytest.raises(ValueError, match="the contract's frame counts are those of"):
        FAMILIES["wav2vec2"].random({"conv_kernel": (10, 3, 3, 3, 3, 2, 3)})


def item_of(subset: Sequence[Modality], samples: int, tokens: int, seed: int) -> dict[Modality, dict[str, Array]]:
    """Ready tensors of one item, each padded to its own bucket."""
    rng = np.random.default_rng(seed)
    clip = np.zeros(bucket_for(samples, AUDIO_SAMPLES), np.float32)
    clip[:samples] = rng.normal(size=samples)
    ids = np.zeros(bucket_for(tokens, TEXT_TOKENS), np.int64)
    ids[:tokens] = rng.integers(1_000, 30_000, tokens)
    everything: dict[Modality, dict[str, Array]] = {
        "image": {"pixel_values": rng.normal(size=(3, 224, 224)).astype(np.float32)},
        "audio": {"input_values": clip, "num_samples": np.array([samples], np.int64)},
        "text": {"input_ids": ids, "attention_mask": (np.arange(len(ids)) < tokens).astype(np.int64)},
    }
    return {m: everything[m] for m in subset}


def answer(model: CrossModalTransformer, items: Sequence[dict[Modality, dict[str, Array]]]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for m in items[0]:
        tensors |= collate(m, [item[m] for item in items])
    return run_model(model, tensors)


def assert_close(came: dict[str, Array], wanted: dict[str, Array], tolerance: float = 1e-5) -> None:
    assert came.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(came[name], wanted[name], atol=tolerance, err_msg=name)


lengths = st.tuples(st.sampled_from(LENGTHS[:6]), st.integers(3, 128))


@pytest.mark.long
@settings(max_examples=10)
@given(subset=st.sampled_from(SUBSETS), sizes=st.lists(lengths, min_size=2, max_size=4))
def test_a_batch_answers_as_its_items_do_alone(
    checkpoint: Checkpoint, subset: Sequence[Modality], sizes: list[tuple[int, int]]
) -> None:
    items = [item_of(subset, samples, tokens, seed) for seed, (samples, tokens) in enumerate(sizes)]
    together = answer(checkpoint.model, items)
    for index, item in enumerate(items):
        alone = answer(checkpoint.model, [item])
        assert_close({name: array[index : index + 1] for name, array in together.items()}, alone, 2e-5)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_an_absent_modality_is_absent_however_it_is_said(checkpoint: Checkpoint, subset: Sequence[Modality]) -> None:
    """By missing tensors, as a pipeline says it, or by a presence mask, as training does."""
    item = item_of(MODALITIES, 12_000, 20, seed=1)
    missing = answer(checkpoint.model, [{m: item[m] for m in subset}])
    presence = torch.tensor([[int(m in subset) for m in MODALITIES]])
    tensors = {name: torch.from_numpy(a[None]) for m in MODALITIES for name, a in item[m].items()}
    with torch.inference_mode():
        masked = {name: tensor.numpy() for name, tensor in checkpoint.model(tensors, presence).items()}
    assert_close(missing, masked)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_attention_is_shared_among_those_present(checkpoint: Checkpoint, subset: Sequence[Modality]) -> None:
    came = answer(checkpoint.model, [item_of(subset, 12_000, 20, seed) for seed in range(3)])
    assert all(np.isfinite(array).all() for array in came.values())
    np.testing.assert_allclose(came["attention"].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(came["probabilities"].sum(axis=1), 1, atol=1e-6)
    assert (np.abs(came["valence_arousal"]) <= 1).all()
    for index, m in enumerate(MODALITIES):
        assert (came["attention"][:, index] > 0).all() if m in subset else not came["attention"][:, index].any()


def test_subsets_answer_differently(checkpoint: Checkpoint) -> None:
    """Else the tests above would hold for a model that looks at nothing."""
    item = item_of(MODALITIES, 12_000, 20, seed=1)
    answers = [answer(checkpoint.model, [{m: item[m] for m in subset}])["logits"] for subset in SUBSETS]
    for index, one in enumerate(answers):
        assert all(np.abs(one - other).max() > 1e-3 for other in answers[:index])


def fusion_inputs(tokens: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for count in tokens:
        inputs += [torch.randn(2, count, MODEL_WIDTH, generator=generator), torch.ones(2, count, dtype=torch.int64)]
    return inputs


@pytest.mark.parametrize("absent", [s for s in SUBSETS if len(s) < 3], ids="+".join)
@pytest.mark.parametrize("scale", [1.0, 1e6])
@torch.inference_mode()
def test_values_that_stand_in_are_never_read(checkpoint: Checkpoint, absent: Sequence[Modality], scale: float) -> None:
    fusion = checkpoint.model.fusion
    quiet, loud = fusion_inputs((197, 49, 16)), fusion_inputs((197, 49, 16))
    for index, m in enumerate(MODALITIES):
        if m in absent:
            quiet[2 * index], quiet[2 * index + 1] = absent_like(quiet[0])
            loud[2 * index] = scale * torch.randn(2, 3, MODEL_WIDTH)  # of another length, too
            loud[2 * index + 1] = torch.zeros(2, 3, dtype=torch.int64)
    for came, wanted in zip(fusion(*loud), fusion(*quiet), strict=True):
        assert difference(came, wanted) < 1e-5


@torch.inference_mode()
def test_padding_tokens_are_never_read(checkpoint: Checkpoint) -> None:
    fusion = checkpoint.model.fusion
    plain, longer = fusion_inputs((197, 49, 16)), fusion_inputs((197, 49, 16))
    for index in range(3):
        longer[2 * index] = torch.cat([longer[2 * index], 1e3 * torch.randn(2, 30, MODEL_WIDTH)], dim=1)
        longer[2 * index + 1] = nn.functional.pad(longer[2 * index + 1], (0, 30))
    for came, wanted in zip(fusion(*longer), fusion(*plain), strict=True):
        assert difference(came, wanted) < 1e-5


def test_padding_ids_are_never_read(checkpoint: Checkpoint) -> None:
    item = item_of(("text",), 1_600, 20, seed=2)
    other = copy.deepcopy(item)
    other["text"]["input_ids"][20:] = 4_321
    assert_close(answer(checkpoint.model, [other]), answer(checkpoint.model, [item]))


@torch.inference_mode()
def test_temperature_divides_the_logits() -> None:
    torch.manual_seed(0)
    fusion = CrossModalFusion(FusionSize(layers=1, feed_forward_width=8), 5).eval()
    logits, probabilities, *_ = fusion(*fusion_inputs((4, 4, 4)))
    assert difference(probabilities, logits.softmax(-1)) < 1e-6
    fusion.temperature.fill_(2.5)
    assert "temperature" in fusion.state_dict()
    warm_logits, warm, *_ = fusion(*fusion_inputs((4, 4, 4)))
    assert difference(warm_logits, logits) == 0
    assert difference(warm, (logits / 2.5).softmax(-1)) < 1e-6


def test_a_stand_in_is_one_token_of_zeros_masked_out() -> None:
    features, mask = absent_like(torch.ones(3, 7, MODEL_WIDTH))
    assert (features.shape, features.dtype, features.any().item()) == ((3, 1, MODEL_WIDTH), torch.float32, False)
    assert (mask.shape, mask.dtype, mask.any().item()) == ((3, 1), torch.int64, False)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_stage_makes_what_its_contract_says(checkpoint: Checkpoint, modality: Modality) -> None:
    stage = STAGES[f"encode_{modality}"]
    item = item_of((modality,), 20_000, 20, seed=3)[modality]
    came = run_stage(checkpoint.model, stage, {name: array[None] for name, array in item.items()})
    assert list(came) == [spec.name for spec in stage.outputs]
    for spec in stage.outputs:
        assert spec.mismatch(came[spec.name]) is None


def test_no_modality_at_all_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="expected those of one modality or more"):
        run_model(checkpoint.model, {})


def test_presence_may_differ_between_the_items_of_a_batch(checkpoint: Checkpoint) -> None:
    items = [item_of(MODALITIES, 12_000, 20, seed) for seed in range(len(SUBSETS))]
    tensors: dict[str, Tensor] = {}
    for m in MODALITIES:
        tensors |= {name: torch.from_numpy(array) for name, array in collate(m, [item[m] for item in items]).items()}
    presence = torch.tensor([[int(m in subset) for m in MODALITIES] for subset in SUBSETS])
    with torch.inference_mode():
        came = {name: tensor.numpy() for name, tensor in checkpoint.model(tensors, presence).items()}
    assert list(came) == [spec.name for spec in FUSE.outputs]
    for index, subset in enumerate(SUBSETS):
        alone = answer(checkpoint.model, [{m: items[index][m] for m in subset}])
        assert_close({name: array[index : index + 1] for name, array in came.items()}, alone)


def test_weights_are_seeded() -> None:
    states = [checkpoint_from_preset("mini", "iemocap4", seed=seed).model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fusion.pools.0.score.weight"], states[2]["fusion.pools.0.score.weight"])
    assert states[0]["fusion.heads.0.emotion_head.3.weight"].shape == (4, MODEL_WIDTH)
