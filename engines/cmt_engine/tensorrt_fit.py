"""Whether TensorRT can take an ONNX graph: every misfit at once, with its node, its operator and how to mend it.

A parser tells of operators that it can't import. What it imports and then runs badly, or not at all for some input, it
doesn't tell: a shape that depends on values, an axis without a profile, a sum in fp16. Nothing is run here and no
weights are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir import DataType
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from cmt_engine.tensorrt_operators import (
    ATTRIBUTES,
    CONSTANT_INPUTS,
    DATA_DEPENDENT,
    IN_FP32,
    ONE_OUTPUT,
    OPERATORS,
    OPSETS,
    SHAPE_INPUTS,
)

NARROW = frozenset({DataType.FLOAT16, DataType.BFLOAT16})
STANDARD_DOMAINS = ("", "ai.onnx")
SHAPES = frozenset({"Shape", "Size"})  # read a shape, not what is in it
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

#: tensor -> {"min": shape, "opt": shape, "max": shape}, each with batch
Profile = dict[str, dict[str, list[int]]]


def misfits(path: Path, profile: Profile) -> list[str]:
    """Each misfit of the graph that TensorRT is given, under its optimisation profile; none where it fits."""
    model = ir.load(path)
    InlinePass()(model)
    ShapeInferencePass()(model)
    opset = model.opset_imports.get("", 0)
    found = [] if opset in OPSETS else [f"got opset {opset}; expected {OPSETS[0]} to {OPSETS[-1]}: export it with 18"]
    found += [misfit for value in model.graph.inputs for misfit in _axis_misfits(value, profile)]
    of_data: set[ir.Value] = set(model.graph.inputs)
    for node in model.graph.all_nodes():
        found += [f"{_name(node)}: {misfit}" for misfit in _node_misfits(node, of_data)]
        if _reads_data(node, of_data):
            of_data.update(node.outputs)
        of_data.update(value for body in _bodies(node) for value in body.inputs)
    return found


def _node_misfits(node: ir.Node, of_data: Collection[ir.Value]) -> Iterator[str]:
    op = node.op_type
    if node.domain not in STANDARD_DOMAINS or op not in OPERATORS:
        yield "TensorRT has no such operator: write it with those of ONNX that it has, or without"
        return
    if op in DATA_DEPENDENT:
        yield "makes as many items as values decide: mask what isn't wanted instead of selecting"
    yield from _type_misfits(node)
    for index in CONSTANT_INPUTS.get(op, ()):
        if (value := _input(node, index)) is not None and value in of_data:
            yield f"got {value.name} from the graph's inputs; expected a constant: write it into the graph"
    for index in SHAPE_INPUTS.get(op, ()):
        if (value := _input(node, index)) is not None and value in of_data:
            yield f"its shape depends on the values of {value.name}: compute it from shapes and constants alone"
    for name, expected in ATTRIBUTES.get(op, {}).items():
        got = node.attributes[name].value if name in node.attributes else expected
        if got != expected:
            yield f"got {name} {got!r}; TensorRT takes {expected!r} alone"
    if op in ONE_OUTPUT and any(output.uses() for output in node.outputs[1:]):
        yield "its second output is used; TensorRT makes the first alone"


def _type_misfits(node: ir.Node) -> Iterator[str]:
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    if DataType.DOUBLE in types:
        yield "got DOUBLE, which TensorRT rounds to FLOAT: compute in float32"
        return
    takes, got = OPERATORS[node.op_type], _main_type(node)
    if got is not None and got not in takes:
        yield f"got {got.name}; TensorRT takes {_names(takes)}: cast before it"
    elif node.op_type in IN_FP32 and types & NARROW:
        yield f"got {_names(types & NARROW)}; it overflows or loses its sums there: keep it in FLOAT"


def _main_type(node: ir.Node) -> DataType | None:
    """The type by which the matrix lists an operator: of its data, which mostly come first."""
    if node.op_type == "Where":
        return node.inputs[1].dtype if node.inputs[1] else None
    made = node.op_type in {"Constant", "ConstantOfShape", "If", "Loop", "Scan"} or not node.inputs
    value = node.outputs[0] if made else node.inputs[0]
    return value.dtype if value is not None else None


def _axis_misfits(value: ir.Value, profile: Profile) -> Iterator[str]:
    """Of an input: every dynamic axis has a range, and nothing else is dynamic; the batch may be one alone.

    An input of another name or rank is the contract's to tell (tensorrt_contract).
    """
    shapes = profile.get(value.name or "")
    if shapes is None or value.shape is None or len(value.shape) != len(shapes["max"]):
        return
    for index, dim in enumerate(value.shape):
        least, most = shapes["min"][index], shapes["max"][index]
        if isinstance(dim, int) and not least == dim == most:
            yield f"input {value.name}, axis {index}: got {dim} alone; expected {least} to {most}: make it dynamic"
        elif not isinstance(dim, int) and least == most and index > 0:
            yield f"input {value.name}, axis {index}: is dynamic; expected {most} alone: export it with that size"


def _reads_data(node: ir.Node, of_data: Collection[ir.Value]) -> bool:
    """Whether what a node makes depends on the values of the graph's inputs, not on their shapes alone."""
    if node.op_type in SHAPES:
        return False
    return node.op_type in CONTROL_FLOW or any(value in of_data for value in node.inputs)


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _name(node: ir.Node) -> str:
    domain = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
    return f"{domain}{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')}"


def _names(types: Collection[DataType | None]) -> str:
    return ", ".join(sorted(dtype.name for dtype in types if dtype is not None))
