"""What fp16 makes of a graph's tensors: measured, and mended where it doesn't hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from cmt_engine.activation_ranges import FP16_LARGEST, HEADROOM, ActivationRange, activation_ranges, beyond_fp16
from cmt_engine.engine import Build
from cmt_engine.onnxruntime_engine import OnnxRuntimeRunner
from cmt_engine.tensorrt_build import TensorRtOptions
from cmt_engine.tensorrt_engine import TENSORRT
from cmt_engine.typed_onnx import narrow_tensors, onnx_in_precision
from cmt_pipeline.stages import STAGES, sized
from cmt_pipeline.tensors import DEFAULT_SIZES, Array, Arrays
from small_graphs import needs_rtx, small_graph, small_inputs

TEXT = STAGES["encode_text"]
TOLERANCE = TENSORRT.tolerances["fp16"].relative


def outlier_graph(folder: Path, factor: float = 1e5) -> Path:
    """The small text encoder, its feed-forward net times a factor, and as much smaller behind: the same function but
    for what the bend of GELU changes."""
    model = onnx.load(small_graph("encode_text"))
    named = {tensor.name: tensor for tensor in model.graph.initializer}
    up = next(name for name, tensor in named.items() if list(tensor.dims) == [32, 128])
    down = next(name for name, tensor in named.items() if list(tensor.dims) == [128, 32] and "positions" not in name)
    for name, times in ((up, factor), ("attention.up.bias", factor), (down, 1 / factor)):
        array = numpy_helper.to_array(named[name]) * np.float32(times)
        named[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, folder / "outlier.onnx")
    return folder / "outlier.onnx"


def in_numpy(path: Path, inputs: Arrays) -> Array:
    """Features as onnx's reference evaluator computes them, every fp16 tensor in fp16."""
    evaluator = ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"):
        features: Array = evaluator.run(["text_features"], dict(inputs))[0]
    return features


def relative(came: Array, wanted: Array) -> float:
    difference = came.astype(np.float64) - wanted.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(wanted.astype(np.float64) ** 2)))


@pytest.mark.long
def test_an_outlier_overflows_in_fp16_and_is_mended_by_what_samples_show(tmp_path: Path) -> None:
    graph, inputs = outlier_graph(tmp_path), small_inputs(TEXT)
    wanted = OnnxRuntimeRunner(graph, 1).run(inputs)["text_features"]
    naive = onnx_in_precision(graph, "fp16", tmp_path / "naive.onnx")
    assert not np.isfinite(in_numpy(naive, inputs)).all()

    beyond = beyond_fp16(activation_ranges(graph, [inputs], 1))
    assert max(size for size in beyond.values() if size < 1e30) > FP16_LARGEST
    mended = onnx_in_precision(graph, "fp16", tmp_path / "mended.onnx", beyond)
    assert relative(in_numpy(mended, inputs), wanted) < TOLERANCE


def test_what_isnt_near_an_outlier_stays_narrow(tmp_path: Path) -> None:
    graph = outlier_graph(tmp_path)
    beyond = beyond_fp16(activation_ranges(graph, [small_inputs(TEXT)], 1))
    mended = onnx.load(onnx_in_precision(graph, "fp16", tmp_path / "mended.onnx", beyond))
    types = {info.name: info.type.tensor_type.elem_type for info in mended.graph.value_info}
    products = [types[node.output[0]] for node in mended.graph.node if node.op_type == "MatMul"]
    assert (products.count(TensorProto.FLOAT), products.count(TensorProto.FLOAT16)) == (2, len(products) - 2)
    assert not {name for name in beyond if types.get(name) == TensorProto.FLOAT16}
    assert not {f"{name}_float16" for name in beyond} & types.keys()


def test_a_graph_within_range_gets_the_same_types_as_without_samples(tmp_path: Path) -> None:
    graph, inputs = small_graph("encode_text"), small_inputs(TEXT)
    beyond = beyond_fp16(activation_ranges(graph, [inputs], 1))
    assert beyond  # the mask, which is in fp32 anyway
    assert not beyond.keys() & narrow_tensors(graph, "fp16")
    texts = [
        onnx_in_precision(graph, "fp16", tmp_path / f"{index}.onnx", names).read_bytes()
        for index, names in enumerate(((), beyond))
    ]
    assert texts[0].replace(b"0.onnx.data", b"") == texts[1].replace(b"1.onnx.data", b"")


def test_ranges_are_those_of_the_tensors_themselves(tmp_path: Path) -> None:
    graph, inputs = small_graph("encode_text"), small_inputs(TEXT)
    ranges = activation_ranges(graph, [inputs], 1)
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    weights = {tensor.name for tensor in model.graph.initializer}
    computed = [info for info in model.graph.value_info if info.name not in weights]
    model.graph.output.extend(info for info in computed if info.type.tensor_type.elem_type == TensorProto.FLOAT)
    onnx.save(model, tmp_path / "all.onnx")
    tensors = OnnxRuntimeRunner(tmp_path / "all.onnx", 1).run(inputs)
    assert {found.name for found in ranges} == {name for name, array in tensors.items() if array.dtype == np.float32}
    for found in ranges:
        array = tensors[found.name]
        assert found.largest == pytest.approx(float(np.abs(array).max()), rel=1e-5)
        if not found.too_large and array.any():
            assert found.rounded == pytest.approx(relative(array.astype(np.float16), array), rel=1e-2, abs=1e-7)


def test_ranges_are_over_all_samples() -> None:
    graph, one = small_graph("encode_text"), small_inputs(TEXT)
    other = {**one, "input_ids": one["input_ids"] // 2}
    alone = [activation_ranges(graph, [sample], 1) for sample in (one, other)]
    for both, first, second in zip(activation_ranges(graph, [one, other], 1), *alone, strict=True):
        assert both.largest == max(first.largest, second.largest)
        assert min(first.rounded, second.rounded) <= both.rounded * (1 + 1e-6)
        assert both.rounded <= max(first.rounded, second.rounded) * (1 + 1e-6)
    with pytest.raises(ValueError, match="got no samples"):
        activation_ranges(graph, [], 1)


def test_what_is_too_large_and_what_too_small() -> None:
    held = ActivationRange("x", "Add", "", FP16_LARGEST / HEADROOM, 2e-4)
    assert not held.too_large
    assert not held.too_small
    for largest in (FP16_LARGEST, float("inf"), float("nan")):
        assert replace(held, largest=largest).too_large
    for rounded in (0.5, float("inf"), float("nan")):
        assert replace(held, largest=1e-6, rounded=rounded).too_small


def test_small_values_are_kept_too(tmp_path: Path) -> None:
    """Of a net whose hidden states lie about 1e-6, where fp16 has a number every 6e-8."""
    graph, inputs = outlier_graph(tmp_path, factor=1e-5), small_inputs(TEXT)
    wanted = OnnxRuntimeRunner(graph, 1).run(inputs)["text_features"]
    beyond = beyond_fp16(activation_ranges(graph, [inputs], 1))
    naive = onnx_in_precision(graph, "fp16", tmp_path / "naive.onnx")
    mended = onnx_in_precision(graph, "fp16", tmp_path / "mended.onnx", beyond)
    assert 3 * relative(in_numpy(mended, inputs), wanted) < relative(in_numpy(naive, inputs), wanted)


@needs_rtx
def test_an_export_measures_and_says_what_it_keeps(tmp_path: Path) -> None:
    graph, stage = outlier_graph(tmp_path), sized(TEXT, DEFAULT_SIZES)
    samples = [small_inputs(TEXT)]
    kept = {}
    for precision in ("fp16", "bf16"):
        build = Build(graph, stage, tmp_path / precision, precision, lambda: samples)
        kept[precision] = TENSORRT.build(build).fp32_tensors
    assert min(kept["fp16"].values()) * HEADROOM > FP16_LARGEST
    assert kept["fp16"].keys() <= narrow_tensors(graph, "fp16")
    assert kept["bf16"] == TensorRtOptions().fp32_tensors == {}
