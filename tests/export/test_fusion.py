"""The fusion keeps the promises: what is masked has no say, subsets, batches, gradients, and every engine."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cmt_engine.engine import Build, Precision, Runner, open_engine
from cmt_engine.onnxruntime_engine import OnnxRuntimeRunner
from cmt_engine.openvino_engine import OPENVINO
from cmt_engine.tensorrt_build import TensorRtOptions, engine_from_onnx
from cmt_export.baselines import fusion_of
from cmt_export.fusion import CrossModalFusion
from cmt_export.log_linear import Calibrated, Expert, LogLinearFusion
from cmt_export.model import CrossModalTransformer, run_stage
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.presets import FusionSize, preset_of
from cmt_pipeline.stages import FUSE, sized
from cmt_pipeline.tensors import ABSENT_TOKENS, DEFAULT_SIZES, MODEL_WIDTH, Array
from small_graphs import needs_rtx

SIZE = FusionSize(layers=2, heads=4, feed_forward_width=64)
LABELS = 5
TOLERANCE = 5e-5
subsets = pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
Tokens = dict[Modality, tuple[Tensor, Tensor]]


def fusion() -> CrossModalFusion:
    """Its branches as large as those of a trained one, so that what they do shows."""
    torch.manual_seed(0)
    made = CrossModalFusion(SIZE, LABELS).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made


def tokens(counts: Sequence[int], batch: int = 2, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return {
        m: (torch.randn(batch, n, MODEL_WIDTH, generator=generator), torch.ones(batch, n, dtype=torch.int64))
        for m, n in zip(MODALITIES, counts, strict=True)
    }


def ask(module: nn.Module, given: Mapping[Modality, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    answer: tuple[Tensor, ...] = module(*itertools.chain.from_iterable(given[m] for m in MODALITIES))
    return answer


def assert_same(came: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(came, wanted, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() < TOLERANCE


@subsets
@torch.inference_mode()
def test_neither_padding_nor_what_stands_in_is_read(subset: Sequence[Modality]) -> None:
    made, plain = fusion(), tokens((9, 7, 4))
    absent = (torch.zeros(2, ABSENT_TOKENS, MODEL_WIDTH), torch.zeros(2, ABSENT_TOKENS, dtype=torch.int64))
    loud = {
        m: (
            torch.cat([x if m in subset else 1e3 * x, torch.full((2, 3, MODEL_WIDTH), 1e3)], 1),
            torch.cat([mask * (m in subset), torch.zeros(2, 3, dtype=torch.int64)], 1),
        )
        for m, (x, mask) in plain.items()
    }
    wanted = ask(made, {m: plain[m] if m in subset else absent for m in MODALITIES})
    assert_same(ask(made, loud), wanted)
    weights = wanted[3]
    assert (weights.sum(dim=1) - 1).abs().max() < TOLERANCE
    assert all(bool((weights[:, i] > 0).all()) == (m in subset) for i, m in enumerate(MODALITIES))


@pytest.mark.long
@settings(max_examples=10)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 5)), min_size=2, max_size=4),
    presences=st.lists(st.sampled_from(SUBSETS), min_size=4, max_size=4),
)
@torch.inference_mode()
def test_a_batch_answers_as_its_items_do_alone(
    sizes: list[tuple[int, int, int]], presences: list[Sequence[Modality]]
) -> None:
    made, together = fusion(), tokens((9, 7, 5), batch=len(sizes))
    for row, (counts, subset) in enumerate(zip(sizes, presences, strict=False)):
        for m, count in zip(MODALITIES, counts, strict=True):
            together[m][1][row, count if m in subset else 0 :] = 0
    answers = ask(made, together)
    for row, counts in enumerate(sizes):
        alone = {
            m: (x[row : row + 1, :n], mask[row : row + 1, :n])
            for (m, (x, mask)), n in zip(together.items(), counts, strict=True)
        }
        assert_same([answer[row : row + 1] for answer in answers], ask(made, alone))


@subsets
def test_every_parameter_gets_a_gradient_whatever_is_missing(subset: Sequence[Modality]) -> None:
    """Processes that train together wait for each."""
    made = fusion().train()
    given = {m: (x, mask * (m in subset)) for m, (x, mask) in tokens((9, 7, 4)).items()}
    features, masks = [given[m][0] for m in MODALITIES], [given[m][1] for m in MODALITIES]
    logits, valence_arousal, apart = made.taught(features, masks)
    (logits.sum() + valence_arousal.sum() + apart.sum()).backward()
    assert not [name for name, parameter in made.named_parameters() if parameter.grad is None]


@torch.inference_mode()
def test_what_is_taught_is_what_answers() -> None:
    made, given = fusion(), tokens((9, 7, 4))
    features, masks = [given[m][0] for m in MODALITIES], [given[m][1] for m in MODALITIES]
    logits, _, valence_arousal, _ = ask(made, given)
    assert_same(made.taught(features, masks)[:2], (logits, valence_arousal))


@torch.inference_mode()
def test_each_modality_is_taught_to_answer_as_its_own_pipeline_does() -> None:
    made, given = fusion(), tokens((9, 7, 4))
    apart = made.taught([given[m][0] for m in MODALITIES], [given[m][1] for m in MODALITIES])[2]
    for index, own in enumerate(MODALITIES):
        alone = {m: (x, mask * (m == own)) for m, (x, mask) in given.items()}
        assert_same([apart[:, index]], [ask(made, alone)[0]])


@torch.inference_mode()
def test_a_new_one_answers_as_log_linear_pooling_of_its_heads_does() -> None:
    """Before it has learnt anything that isn't a sum; and it stays so once calibrated."""
    torch.manual_seed(0)
    made, given = CrossModalFusion(SIZE, LABELS).eval(), tokens((9, 7, 4), batch=3)
    made.log_prior.copy_(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log())
    experts = {m: Expert("softmax", tuple(range(LABELS))) for m in MODALITIES}
    pool = LogLinearFusion(experts, LABELS)
    features, masks = [given[m][0] for m in MODALITIES], [given[m][1] for m in MODALITIES]
    separate = made.taught(features, masks)[2]
    found = Calibrated(
        torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1]).log(),
        torch.tensor([0.5, 1.5, 2.0]),
        torch.linspace(-1, 1, 3 * LABELS).reshape(3, LABELS),
        torch.tensor([0.8, 1.2, 0.4]),
    )
    for by in (replace(Calibrated.none(LABELS), log_prior=made.log_prior.clone()), found):
        made.calibrate(**vars(by), interaction=0.7)
        for subset in SUBSETS:
            there = torch.tensor([[float(m in subset) for m in MODALITIES]]).expand(3, -1)
            wanted = pool.pooled(list(separate.unbind(dim=1)), there, by)[0].softmax(dim=-1)
            masked = [mask * (m in subset) for m, mask in zip(MODALITIES, masks, strict=True)]
            assert_same([made.answer(features, masked)[0].softmax(dim=-1)], [wanted])


@torch.inference_mode()
def test_a_modality_that_says_little_has_little_share_of_the_evidence() -> None:
    made, given = fusion(), tokens((9, 7, 4))
    before = ask(made, given)[3]
    for parameter in made.heads[0].emotion_head[-1].parameters():
        parameter.mul_(0.01)
    after = ask(made, given)[3]
    assert (after[:, 0] < 0.1 * before[:, 0]).all()
    assert (after.sum(dim=1) - 1).abs().max() < TOLERANCE


def test_presets_name_their_fusion() -> None:
    assert {preset_of(name).fusion.kind for name in ("base", "fast", "mini")} == {"cross_attention"}
    assert isinstance(fusion_of("cmt", FusionSize(layers=1), 3), CrossModalFusion)


def test_what_cant_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="fusion: got 'best'; expected one of cross_attention"):
        fusion_of("cmt", FusionSize(kind="best"), 3)
    with pytest.raises(ValueError, match="heads: got 3; expected an even number"):
        fusion_of("cmt", FusionSize(heads=3), 3)


@pytest.fixture(scope="module")
def model() -> CrossModalTransformer:
    return CrossModalTransformer({m: nn.Identity() for m in MODALITIES}, fusion()).eval()


@pytest.fixture(scope="module")
def graph(model: CrossModalTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_from_checkpoint(model, FUSE, tmp_path_factory.mktemp("fuse"))


def inputs_of(subset: Sequence[Modality], batch: int, lengths: tuple[int, int, int]) -> dict[str, Array]:
    rng = np.random.default_rng(batch)
    inputs: dict[str, Array] = {}
    for m, length in zip(MODALITIES, lengths, strict=True):
        size = length if m in subset else ABSENT_TOKENS
        inputs[f"{m}_features"] = rng.normal(size=(batch, size, MODEL_WIDTH)).astype(np.float32)
        real = np.arange(size) < rng.integers(1, size + 1, (batch, 1))
        inputs[f"{m}_mask"] = real.astype(np.int64) * (m in subset)
    return inputs


def assert_parity(model: CrossModalTransformer, runner: Runner, precision: Precision) -> None:
    for batch, (subset, lengths) in enumerate(zip(SUBSETS, [(197, 49, 16), (197, 199, 64)] * 4, strict=False), 1):
        inputs = inputs_of(subset, batch, lengths)
        came, wanted = runner.run(inputs), run_stage(model, FUSE, inputs)
        for name in wanted:
            error = np.sqrt(np.mean((came[name] - wanted[name]) ** 2) / np.mean(wanted[name] ** 2))
            assert error < OPENVINO.tolerances[precision].relative, (subset, name)


@pytest.mark.long
def test_its_graph_answers_as_pytorch_does(model: CrossModalTransformer, graph: Path) -> None:
    assert_parity(model, OnnxRuntimeRunner(graph, threads=1), "fp32")


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_engines_answer_as_pytorch_does(
    precision: Precision, model: CrossModalTransformer, graph: Path, tmp_path: Path
) -> None:
    OPENVINO.build(Build(graph, FUSE, tmp_path, precision))
    assert_parity(model, open_engine(tmp_path, 1), precision)


@pytest.mark.long
@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_tensorrt_builds_it(precision: Precision, graph: Path, tmp_path: Path) -> None:
    options = TensorRtOptions(flavour="tensorrt_rtx", precision=precision)
    assert engine_from_onnx(graph, sized(FUSE, DEFAULT_SIZES), tmp_path, options).precision == precision
