"""A model that reads some of the modalities: what it has no encoder for is nothing that engines compute with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from cmt_engine.engine import ENGINES, Build, Precision, open_engine
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_export.export import GoldenSample
from cmt_export.model import CrossModalTransformer, run_model
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_export.parity import references, stage_parity
from cmt_export.samples import batches
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import STAGES, sized
from cmt_pipeline.tensors import ABSENT_TOKENS


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    return checkpoint_from_preset("mini", "meld")


@pytest.fixture(scope="module")
def without_audio(whole: Checkpoint) -> CrossModalTransformer:
    encoders = {m: encoder for m, encoder in whole.model.encoders.items() if m != "audio"}
    return CrossModalTransformer(encoders, whole.model.fusion).eval()  # type: ignore[arg-type]


def test_it_says_what_it_reads(without_audio: CrossModalTransformer) -> None:
    assert without_audio.modalities == ("image", "text")
    assert without_audio.sizes.audio == (ABSENT_TOKENS,)


def test_what_it_doesnt_read_has_no_say(whole: Checkpoint, without_audio: CrossModalTransformer) -> None:
    ready = batches(make_preprocessors(whole.config.preprocess, whole.tokenizer), (2,))[0].tensors
    heard = run_model(without_audio, ready)
    silent = {name: array for name, array in ready.items() if name not in ("input_values", "num_samples")}
    for name, array in run_model(whole.model, silent).items():
        np.testing.assert_allclose(heard[name], array, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "precision"),
    [("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "int8")],
)
def test_engines_make_nothing_of_it(
    name: str, precision: Precision, whole: Checkpoint, without_audio: CrossModalTransformer, tmp_path: Path
) -> None:
    stage, engine = sized(STAGES["encode_audio"], without_audio.sizes), ENGINES[name]
    made = batches(make_preprocessors(whole.config.preprocess, whole.tokenizer), (1, 2))
    expected = references(without_audio, stage, made)
    graph = onnx_from_checkpoint(without_audio, stage, tmp_path / "onnx")
    read = {name for node in onnx.load(graph).graph.node for name in node.input}
    assert {spec.name for spec in stage.inputs} <= read  # a compiler drops what nothing reads, and refuses it then
    engine.build(Build(graph, stage, tmp_path / precision, precision, lambda: [inputs for inputs, _ in expected]))
    row = stage_parity(open_engine(tmp_path / precision), engine, stage, precision, expected)
    assert (row.error, row.passed) == (0.0, True)


def test_golden_samples_are_those_of_what_it_reads() -> None:
    sample = GoldenSample({"image": b"i", "text": b"t"})
    assert sample.of(("image", "text")) == {"image": b"i", "text": b"t"}
    assert sample.of(("audio", "text")) == {}
