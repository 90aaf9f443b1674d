"""Precision in the graph, held against the fp32 graph in ONNX Runtime and in onnx's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cmt_engine.typed_onnx import TypedPrecision, onnx_files, onnx_in_precision
from cmt_pipeline.stages import STAGES
from cmt_pipeline.tensors import Array, Arrays
from small_graphs import MODULES, small_graph, small_inputs

STAGE_NAMES = sorted(MODULES)
NARROW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def run(path: Path, inputs: Arrays) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def interpret(path: Path, inputs: Arrays) -> dict[str, Array]:
    """In onnx's reference evaluator, which also knows bf16."""
    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(inputs)), strict=True))


def relative_error(came: Array, wanted: Array) -> float:
    """Root mean square of the difference over that of what was wanted."""
    came, wanted = came.astype(np.float64), wanted.astype(np.float64)
    return float(np.sqrt(np.mean((came - wanted) ** 2) / np.mean(wanted**2)))


def errors(came: Arrays, wanted: Arrays) -> dict[str, float]:
    """Of the floating outputs; integer ones must be equal, and all keep their types."""
    assert {name: array.dtype for name, array in came.items()} == {n: a.dtype for n, a in wanted.items()}
    floats = [name for name, array in wanted.items() if array.dtype == np.float32]
    for name in wanted.keys() - floats:
        np.testing.assert_array_equal(came[name], wanted[name])
    return {name: relative_error(came[name], wanted[name]) for name in floats}


def output_types(path: Path) -> dict[str, set[int]]:
    """Operator -> element types of its first outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    infos = (*graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    found: dict[str, set[int]] = {}
    for node in graph.node:
        found.setdefault(node.op_type, set()).add(types[node.output[0]])
    return found


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Array], path: Path) -> Path:
    """A graph from `x` [batch, 4] to `y` [batch, 4], both float32."""
    shape = ["batch", 4]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.mark.long
@pytest.mark.parametrize("stage_name", STAGE_NAMES)
def test_fp32_is_a_copy(stage_name: str, tmp_path: Path) -> None:
    inputs = small_inputs(STAGES[stage_name])
    copy = onnx_in_precision(small_graph(stage_name), "fp32", tmp_path / "copy.onnx")
    assert set(errors(run(copy, inputs), run(small_graph(stage_name), inputs)).values()) == {0.0}


@pytest.mark.long
@pytest.mark.parametrize("stage_name", STAGE_NAMES)
def test_fp16_stays_close(stage_name: str, tmp_path: Path) -> None:
    inputs = small_inputs(STAGES[stage_name])
    typed = onnx_in_precision(small_graph(stage_name), "fp16", tmp_path / "typed.onnx")
    assert max(errors(run(typed, inputs), run(small_graph(stage_name), inputs)).values()) < 2e-3


@pytest.mark.long
@pytest.mark.parametrize("stage_name", STAGE_NAMES)
def test_bf16_stays_close(stage_name: str, tmp_path: Path) -> None:
    inputs = small_inputs(STAGES[stage_name])
    typed = onnx_in_precision(small_graph(stage_name), "bf16", tmp_path / "typed.onnx")
    assert max(errors(interpret(typed, inputs), run(small_graph(stage_name), inputs)).values()) < 2e-2


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_narrow_and_statistics_wide(precision: TypedPrecision, tmp_path: Path) -> None:
    types = output_types(onnx_in_precision(small_graph("encode_audio"), precision, tmp_path / "typed.onnx"))
    assert {op: types[op] for op in ("Conv", "MatMul", "Transpose", "Erf")} == {
        op: {NARROW[precision]} for op in ("Conv", "MatMul", "Transpose")
    } | {"Erf": {NARROW[precision], TensorProto.FLOAT}}
    for op in ("LayerNormalization", "Softmax", "ReduceSum", "Pow", "Sqrt"):
        assert types[op] == {TensorProto.FLOAT}


def test_weights_and_embeddings_shrink_by_half(tmp_path: Path) -> None:
    source = small_graph("encode_text")
    typed = onnx_in_precision(source, "fp16", tmp_path / "typed.onnx")
    wide, narrow = (onnx_in_precision(source, "fp32", tmp_path / "copy.onnx"), typed)
    sizes = [onnx_files(path)[1].stat().st_size for path in (wide, narrow)]
    assert sizes[1] < 0.55 * sizes[0]
    assert output_types(typed)["Gather"] == {TensorProto.FLOAT16}


def test_sums_over_long_loud_audio_dont_overflow(tmp_path: Path) -> None:
    """The sums of squares go to about 1e7; fp16 ends at 65504."""
    rng = np.random.default_rng(0)
    loud = 30 * rng.normal(size=(1, 16 * 16_000)).astype(np.float32)
    inputs = {"input_values": loud, "num_samples": np.array([[loud.size]])}
    typed = onnx_in_precision(small_graph("encode_audio"), "fp16", tmp_path / "typed.onnx")
    assert max(errors(run(typed, inputs), run(small_graph("encode_audio"), inputs)).values()) < 5e-3


@pytest.mark.parametrize(("constant", "narrow"), [(2.0, True), (1e6, False), (1e-12, False), (-np.inf, True)])
def test_an_operator_whose_constant_doesnt_fit_stays_wide(constant: float, narrow: bool, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Max", ["product", "constant"], ["y"]),
    ]
    source = graph_of(nodes, {"weight": np.eye(4), "constant": constant}, tmp_path / "source.onnx")
    typed = onnx_in_precision(source, "fp16", tmp_path / "typed.onnx")
    assert output_types(typed)["Max"] == {TensorProto.FLOAT16 if narrow else TensorProto.FLOAT}
    inputs = {"x": np.ones((3, 4), np.float32)}
    np.testing.assert_allclose(run(typed, inputs)["y"], run(source, inputs)["y"], rtol=1e-3)


def test_what_a_logarithm_is_taken_of_stays_wide(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "identity"], ["product"]),
        helper.make_node("Mul", ["product", "product"], ["power"]),
        helper.make_node("Log", ["power"], ["log"]),
        helper.make_node("MatMul", ["log", "identity"], ["y"]),
    ]
    source = graph_of(nodes, {"identity": np.eye(4)}, tmp_path / "source.onnx")
    faint = {"x": np.full((1, 4), 1e-6, np.float32)}
    typed = onnx_in_precision(source, "fp16", tmp_path / "typed.onnx")
    np.testing.assert_allclose(run(typed, faint)["y"], run(source, faint)["y"], rtol=1e-3)
    assert output_types(typed)["MatMul"] == {TensorProto.FLOAT, TensorProto.FLOAT16}


def test_an_operator_that_isnt_known_stays_wide(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Softplus", ["product"], ["y"]),
    ]
    source = graph_of(nodes, {"weight": np.eye(4)}, tmp_path / "source.onnx")
    types = output_types(onnx_in_precision(source, "fp16", tmp_path / "typed.onnx"))
    assert (types["MatMul"], types["Softplus"]) == ({TensorProto.FLOAT16}, {TensorProto.FLOAT})


def test_typing_twice_is_typing_once(tmp_path: Path) -> None:
    once = onnx_in_precision(small_graph("fuse"), "fp16", tmp_path / "once.onnx")
    twice = onnx_in_precision(once, "fp16", tmp_path / "twice.onnx")
    nodes = [[node.op_type for node in onnx.load(path).graph.node] for path in (once, twice)]
    assert nodes[0] == nodes[1]


def test_files_of_a_graph(tmp_path: Path) -> None:
    copy = onnx_in_precision(small_graph("fuse"), "fp32", tmp_path / "copy.onnx")
    assert onnx_files(copy) == (copy, tmp_path / "copy.onnx.data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.onnx", "copy.onnx.data"]


def test_what_doesnt_fit_is_refused(tmp_path: Path) -> None:
    source = small_graph("fuse")
    with pytest.raises(ValueError, match=r"got precision 'int8'.*bf16"):
        onnx_in_precision(source, "int8", tmp_path / "typed.onnx")  # type: ignore[arg-type]
    for precision in get_args(TypedPrecision):
        with pytest.raises(ValueError, match="is the source itself"):
            onnx_in_precision(source, precision, source)
