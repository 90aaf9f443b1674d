"""ONNX files: the contract's names and axes, the same answers as PyTorch at every length, weights of any size."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cmt_engine.onnxruntime_engine import ONNXRUNTIME, OnnxRuntimeRunner
from cmt_export.checkpoint import Checkpoint
from cmt_export.model import EncodeStage, run_stage
from cmt_export.onnx_from_checkpoint import check_contract, example, onnx_from_checkpoint
from cmt_pipeline.buckets import frames_of
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.stages import COMPILED_STAGES, STAGES, Stage, sized
from cmt_pipeline.tensors import ABSENT_TOKENS, DEFAULT_SIZES, MODEL_WIDTH, Array, TensorSpec, resolved

compiled = pytest.mark.parametrize("stage", COMPILED_STAGES, ids=lambda stage: stage.name)
ELEMENT_TYPES = {"FP32": onnx.TensorProto.FLOAT, "INT64": onnx.TensorProto.INT64}
#: Of operators, those whose output shape depends on data, or that make a graph slow or unfit for a compiler.
UNWANTED = {"NonZero", "ScatterND", "ScatterElements", "IsNaN", "If", "Loop", "Compress", "Unique"}


@pytest.fixture(scope="module")
def engines(graphs: Mapping[str, Path]) -> Mapping[str, OnnxRuntimeRunner]:
    return {name: OnnxRuntimeRunner(path, threads=1) for name, path in graphs.items()}


def graph_of(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def describe(info: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
    """Name, type and dimensions; -1 for one that a name stands for."""
    tensor = info.type.tensor_type
    return info.name, tensor.elem_type, [-1 if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]


def expected(spec: TensorSpec, labels: int) -> tuple[str, int, list[int]]:
    return spec.name, ELEMENT_TYPES[spec.dtype], [-1, *resolved(spec, labels)]


@compiled
def test_a_graph_has_the_tensors_of_the_contract(stage: Stage, graphs: Mapping[str, Path]) -> None:
    graph = graph_of(graphs[stage.name])
    assert [describe(info) for info in graph.input] == [
        expected(spec, 7) for spec in sized(stage, DEFAULT_SIZES).inputs
    ]
    assert [describe(info) for info in graph.output] == [
        expected(spec, 7) for spec in sized(stage, DEFAULT_SIZES).outputs
    ]
    onnx.checker.check_model(str(graphs[stage.name]), full_check=True)


@compiled
def test_shapes_never_depend_on_data(stage: Stage, graphs: Mapping[str, Path]) -> None:
    graph = graph_of(graphs[stage.name])
    assert not UNWANTED & {node.op_type for node in graph.node}
    assert not [function for function in graph.node if function.domain not in ("", "ai.onnx")]


@compiled
def test_weights_lie_beside_the_graph(stage: Stage, graphs: Mapping[str, Path]) -> None:
    path = graphs[stage.name]
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 1_000_000
    inside = [t for t in graph_of(path).initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(tensor.raw_data) for tensor in inside) < 100_000
    weights = path.with_name("model.onnx.data").stat().st_size
    assert weights > 1_000_000


def mask_of(batch: int, size: int, rng: np.random.Generator) -> Array:
    """Each row has one real position or more; what follows is padding."""
    return (np.arange(size)[None] < rng.integers(1, size + 1, (batch, 1))).astype(np.int64)


def encoder_inputs(modality: Modality, batch: int, size: int, rng: np.random.Generator) -> dict[str, Array]:
    if modality == "image":
        return {"pixel_values": rng.normal(size=(batch, 3, 224, 224)).astype(np.float32)}
    if modality == "audio":
        samples = rng.integers(400, size + 1, (batch, 1))
        values = rng.normal(size=(batch, size)) * (np.arange(size)[None] < samples)
        return {"input_values": values.astype(np.float32), "num_samples": samples}
    return {"input_ids": rng.integers(0, 30_000, (batch, size)), "attention_mask": mask_of(batch, size, rng)}


def fuse_inputs(subset: Sequence[Modality], batch: int, rng: np.random.Generator) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    for m in MODALITIES:
        size = int(rng.choice(DEFAULT_SIZES.tokens(m))) if m in subset else ABSENT_TOKENS
        inputs[f"{m}_features"] = rng.normal(size=(batch, size, MODEL_WIDTH)).astype(np.float32)
        inputs[f"{m}_mask"] = mask_of(batch, size, rng) * (m in subset)
    return inputs


def assert_same(stage: Stage, came: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Masks equal, and features where the mask says that they are real."""
    for spec in stage.outputs:
        assert came[spec.name].dtype == wanted[spec.name].dtype
        if spec.dtype == "INT64":
            np.testing.assert_array_equal(came[spec.name], wanted[spec.name])
            continue
        ours, theirs = came[spec.name], wanted[spec.name]
        if spec.name == f"{stage.modality}_features":
            real = wanted[f"{stage.modality}_mask"].astype(bool)
            ours, theirs = ours[real], theirs[real]
        error = np.sqrt(np.mean((ours - theirs) ** 2)) / max(np.sqrt(np.mean(theirs**2)), 1e-30)
        assert error < ONNXRUNTIME.tolerances["fp32"].relative, spec.name


ENCODER_CASES: list[tuple[Modality, int, int]] = [
    *(("image", batch, 224) for batch in (1, 2, 5)),
    *(("audio", batch, size) for batch, size in [(1, 16_000), (3, 32_000), (2, 64_000), (1, 128_000), (1, 256_000)]),
    *(("audio", batch, size) for batch, size in [(1, 400), (2, 17_777)]),  # no bucket: the axis is really dynamic
    *(("text", batch, size) for batch, size in [(1, 16), (8, 32), (2, 64), (3, 128), (1, 7), (2, 1)]),
]


@pytest.mark.long
@pytest.mark.parametrize(("modality", "batch", "size"), ENCODER_CASES)
def test_encoders_answer_as_pytorch_does(
    modality: Modality, batch: int, size: int, checkpoint: Checkpoint, engines: Mapping[str, OnnxRuntimeRunner]
) -> None:
    stage = STAGES[f"encode_{modality}"]
    inputs = encoder_inputs(modality, batch, size, np.random.default_rng(size))
    came = engines[stage.name].run(inputs)
    assert_same(stage, came, run_stage(checkpoint.model, stage, inputs))
    tokens = {"image": 197, "audio": frames_of(size), "text": size}[modality]
    assert came[f"{modality}_features"].shape == (batch, tokens, MODEL_WIDTH)
    assert not came["absent_features"].any()
    assert not came["absent_mask"].any()


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("batch", [1, 3])
def test_fusion_answers_as_pytorch_does(
    subset: Sequence[Modality], batch: int, checkpoint: Checkpoint, engines: Mapping[str, OnnxRuntimeRunner]
) -> None:
    inputs = fuse_inputs(subset, batch, np.random.default_rng(batch))
    assert_same(STAGES["fuse"], engines["fuse"].run(inputs), run_stage(checkpoint.model, STAGES["fuse"], inputs))


@compiled
def test_examples_to_trace_with_keep_the_contract(stage: Stage) -> None:
    for spec in sized(stage, DEFAULT_SIZES).inputs:
        assert spec.mismatch(example(spec).numpy()) is None
        assert example(spec).shape[0] > 1  # an axis of 1 would be traced as fixed


def edited(source: Path, folder: Path, edit: str) -> Path:
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    if edit == "name":
        graph.input[0].name = "input.1"
    elif edit == "type":
        graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    elif edit == "order":
        first = graph.input.pop(0)
        graph.input.append(first)
    elif edit == "fixed batch":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    elif edit == "fixed length":
        graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    elif edit == "dynamic width":
        graph.output[0].type.tensor_type.shape.dim[2].dim_param = "width"
    elif edit == "output more":
        graph.output.append(graph.output[0])
    onnx.save(model, folder / "edited.onnx")
    return folder / "edited.onnx"


@pytest.mark.parametrize(
    ("edit", "side"),
    [
        ("name", "inputs"),
        ("order", "inputs"),
        ("fixed batch", "inputs"),
        ("fixed length", "inputs"),
        ("type", "outputs"),
        ("dynamic width", "outputs"),
        ("output more", "outputs"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(
    edit: str, side: str, graphs: Mapping[str, Path], tmp_path: Path
) -> None:
    stage = sized(STAGES["encode_text"], DEFAULT_SIZES)
    check_contract(edited(graphs["encode_text"], tmp_path, "none"), stage)
    with pytest.raises(ValueError, match=f"{side}: got .*the contract of encode_text expects"):
        check_contract(edited(graphs["encode_text"], tmp_path, edit), stage)


class HugeVocabulary(nn.Module):
    """A text encoder that is all embedding: 2.1 GB of it, only touched where it is set."""

    sizes = DEFAULT_SIZES

    def __init__(self) -> None:
        super().__init__()
        words = 2**31 // (4 * MODEL_WIDTH) + 1_000
        self.embedding = nn.Embedding(words, MODEL_WIDTH, _weight=torch.empty(words, MODEL_WIDTH))
        with torch.no_grad():
            self.embedding.weight[0] = 1.0
            self.embedding.weight[-1] = torch.arange(MODEL_WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.embedding(input_ids), attention_mask

    def stage(self, _: Stage) -> nn.Module:
        return EncodeStage(self)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files don't outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.long
def test_weights_over_2_gb_break_nothing(folder: Path) -> None:
    """A protobuf message ends at 2 GiB."""
    model = HugeVocabulary()
    words = model.embedding.num_embeddings
    path = onnx_from_checkpoint(model, STAGES["encode_text"], folder)  # type: ignore[arg-type]
    assert path.with_name("model.onnx.data").stat().st_size > 2**31
    ids = np.array([[words - 1, 0] * 8])
    came = OnnxRuntimeRunner(path).run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_array_equal(came["text_features"][0, 0], np.arange(MODEL_WIDTH))
    np.testing.assert_array_equal(came["text_features"][0, 15], 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 9_000_000  # KiB
