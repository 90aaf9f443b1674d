"""Whether graphs fit TensorRT: those that are exported do, and each misfit is told with its node, operator and mend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cmt_engine.tensorrt_build import profile_of
from cmt_engine.tensorrt_fit import misfits
from cmt_engine.tensorrt_operators import ATTRIBUTES, CONSTANT_INPUTS, IN_FP32, OPERATORS, OPSETS, SHAPE_INPUTS
from cmt_engine.typed_onnx import TypedPrecision, onnx_in_precision
from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_pipeline.presets import PRESETS
from cmt_pipeline.stages import COMPILED_STAGES, STAGES, Stage, sized
from family_trial import norms_in_parts
from small_graphs import needs_rtx, text_graph

FLOAT, INT64, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT16
PROFILE = profile_of(STAGES["encode_text"])
#: Imported by TensorRT, not by TensorRT for RTX.
TENSORRT_ALONE = {"DeformConv"}


@pytest.mark.long
@pytest.mark.parametrize("precision", get_args(TypedPrecision))
@pytest.mark.parametrize("stage", COMPILED_STAGES, ids=lambda stage: stage.name)
def test_exported_graphs_fit(
    stage: Stage, precision: TypedPrecision, graphs: Mapping[str, Path], tmp_path: Path
) -> None:
    typed = onnx_in_precision(graphs[stage.name], precision, tmp_path / "typed.onnx")
    assert misfits(typed, profile_of(stage)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "fast"])
def test_the_other_presets_fit(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With one layer an encoder, which the others repeat; all other sizes are the preset's own."""
    preset = PRESETS[name]
    shallow = {m: replace(e, config={**e.config, "num_hidden_layers": 1}) for m, e in preset.encoders.items()}
    monkeypatch.setitem(PRESETS, "shallow", replace(preset, name="shallow", encoders=shallow))
    model = checkpoint_from_preset("shallow", "meld", random_weights=True).model
    for stage in COMPILED_STAGES:
        graph = onnx_from_checkpoint(model, stage, tmp_path / stage.name)
        typed = onnx_in_precision(graph, "fp16", tmp_path / stage.name / "typed.onnx")
        assert misfits(typed, profile_of(sized(stage, model.sizes))) + norms_in_parts(typed) == []


@needs_rtx
def test_the_operators_are_those_of_the_parser() -> None:
    import tensorrt_rtx

    from cmt_engine.tensorrt_module import log_of

    log = log_of(tensorrt_rtx)
    network = tensorrt_rtx.Builder(log).create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, log)
    assert {name for name in OPERATORS if not parser.supports_operator(name)} == TENSORRT_ALONE


def test_the_tables_name_operators_of_onnx() -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert OPERATORS.keys() <= standard
    for table in (CONSTANT_INPUTS, SHAPE_INPUTS, ATTRIBUTES, IN_FP32):
        assert set(table) <= OPERATORS.keys()


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name="bad" if outputs == ["bad"] else "", **attributes)


def constant(name: str, value: Any, dtype: type) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(value, dtype), name)


FEATURES = node("Cast", ["attention_mask"], ["features"], to=FLOAT)
AXIS, WEIGHTS = constant("axis", [1], np.int64), constant("weights", [[1.0]], np.float32)
FITS: dict[str, list[onnx.NodeProto]] = {
    "a shape of a shape": [node("Shape", ["input_ids"], ["shape"]), node("Reshape", ["features", "shape"], ["good"])],
    "a range of a length": [
        node("Shape", ["input_ids"], ["shape"]),
        node("Gather", ["shape", "first"], ["length"]),
        node("Range", ["first", "length", "second"], ["good"]),
    ],
    "a choice by value": [
        node("Cast", ["attention_mask"], ["real"], to=TensorProto.BOOL),
        node("Where", ["real", "features", "features"], ["good"]),
    ],
}
MISFITS: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "an unknown operator": ([node("Det", ["features"], ["bad"])], "Det bad: TensorRT has no such operator"),
    "a custom operator": (
        [node("FusedMatMul", ["features", "features"], ["bad"], domain="com.microsoft")],
        "com.microsoft.FusedMatMul bad: TensorRT has no such operator",
    ),
    "what is selected": (
        [node("NonZero", ["features"], ["bad"])],
        "NonZero bad: makes as many items as values decide: mask",
    ),
    "a shape of values": (
        [node("Cast", ["attention_mask"], ["shape"], to=INT64), node("Expand", ["one", "shape"], ["bad"])],
        "Expand bad: its shape depends on the values of shape: compute it from shapes",
    ),
    "a range of values": (
        [
            node("ReduceMax", ["input_ids"], ["most"], keepdims=0),
            node("Range", ["first", "most", "second"], ["bad"]),
        ],
        "Range bad: its shape depends on the values of most",
    ),
    "integers where floats are taken": (
        [node("Clip", ["input_ids", "first"], ["bad"])],
        "Clip bad: got INT64; TensorRT takes BFLOAT16, FLOAT, FLOAT16: cast before it",
    ),
    "double precision": (
        [node("Cast", ["attention_mask"], ["bad"], to=DOUBLE)],
        "Cast bad: got DOUBLE, which TensorRT rounds to FLOAT: compute in float32",
    ),
    "an axis that isn't constant": (
        [
            node("ReduceMax", ["attention_mask", "axis"], ["of_values"], keepdims=0),
            node("ReduceSum", ["features", "of_values"], ["bad"]),
        ],
        "ReduceSum bad: got of_values from the graph's inputs; expected a constant",
    ),
    "a softmax in fp16": (
        [node("Cast", ["features"], ["half"], to=HALF), node("Softmax", ["half"], ["bad"])],
        "Softmax bad: got FLOAT16; it overflows or loses its sums there: keep it in FLOAT",
    ),
    "an attribute": (
        [node("TopK", ["features", "axis"], ["bad", "indices"], sorted=0)],
        "TopK bad: got sorted 0; TensorRT takes 1 alone",
    ),
    "a second output": (
        [
            node("LayerNormalization", ["features", "scale"], ["normal", "mean"]),
            node("Identity", ["mean"], ["good"]),
        ],
        "LayerNormalization normal: its second output is used; TensorRT makes the first alone",
    ),
}


def saved(nodes: list[onnx.NodeProto], folder: Path, opset: int = 18) -> Path:
    weights = [AXIS, WEIGHTS, constant("first", 0, np.int64), constant("second", 1, np.int64)]
    weights += [constant("scale", [1.0], np.float32)]
    model = text_graph([FEATURES, *nodes, node("Identity", ["features"], ["text_features"])], weights)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    onnx.save(model, folder / "source.onnx")
    return folder / "source.onnx"


@pytest.mark.parametrize("name", FITS)
def test_what_fits(name: str, tmp_path: Path) -> None:
    assert misfits(saved(FITS[name], tmp_path), PROFILE) == []


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_told_with_its_mend(name: str, tmp_path: Path) -> None:
    nodes, told = MISFITS[name]
    found = misfits(saved(nodes, tmp_path), PROFILE)
    assert len(found) == 1
    assert found[0].startswith(told)


def test_what_is_wrong_in_a_body_is_told(tmp_path: Path) -> None:
    bodies = [
        helper.make_graph([node(op, ["features"], [f"{op}_made"])], op, [], [helper.make_empty_tensor_value_info(made)])
        for op, made in (("Det", "Det_made"), ("Relu", "Relu_made"))
    ]
    condition = constant("condition", True, np.bool_)
    choice = node("If", ["condition"], ["made"], then_branch=bodies[0], else_branch=bodies[1])
    path = saved([helper.make_node("Constant", [], ["condition"], value=condition), choice], tmp_path)
    assert [misfit.split(":")[0] for misfit in misfits(path, PROFILE)] == ["Det Det_made"]


def test_a_shape_that_a_loop_carries_counts_as_of_values(tmp_path: Path) -> None:
    counted = [helper.make_tensor_value_info(name, INT64, [1]) for name in ("step", "carried", "next")]
    going, still = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("going", "still"))
    body = helper.make_graph(
        [
            node("Identity", ["going"], ["still"]),
            node("Expand", ["one", "carried"], ["bad"]),
            node("Identity", ["carried"], ["next"]),
        ],
        "body",
        [counted[0], going, counted[1]],
        [still, counted[2]],
    )
    path = saved([node("Loop", ["first", "", "axis"], ["made"], body=body)], tmp_path)
    assert [misfit.split(":")[0] for misfit in misfits(path, PROFILE)] == ["Expand bad"]


def test_opsets_are_those_that_have_a_layer_norm_and_that_the_parser_knows(tmp_path: Path) -> None:
    assert "LayerNormalization" in {schema.name for schema in onnx.defs.get_all_schemas() if schema.since_version == 17}
    for opset, fits in ((OPSETS[0] - 1, False), (OPSETS[0], True), (OPSETS[-1], True), (OPSETS[-1] + 1, False)):
        found = misfits(saved([], tmp_path, opset), PROFILE)
        assert (found == []) == fits
        assert fits or found == [f"got opset {opset}; expected 17 to 24: export it with 18"]


def test_axes_are_those_of_the_profile(tmp_path: Path) -> None:
    model = onnx.load(saved([], tmp_path))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    onnx.save(model, tmp_path / "fixed.onnx")
    assert misfits(tmp_path / "fixed.onnx", PROFILE) == [
        "input input_ids, axis 1: got 64 alone; expected 16 to 128: make it dynamic"
    ]
    one = {name: {kind: [shape[0], 64] for kind, shape in shapes.items()} for name, shapes in PROFILE.items()}
    assert misfits(tmp_path / "fixed.onnx", one) == [
        "input attention_mask, axis 1: is dynamic; expected 64 alone: export it with that size"
    ]
