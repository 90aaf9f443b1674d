"""What is wrong with an ONNX file that is to be a stage: all of it at once, each fault with how to mend it.

Nothing is run here and no weights are read; `onnx_trial` looks at what a graph computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto, helper

from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import LABELS, DType, TensorSpec

MAX_PROTOBUF_BYTES = (1 << 31) - 1
LEAST_OPSET = 13
STANDARD_DOMAINS = ("", "ai.onnx")

ELEMENT_TYPES: dict[DType, int] = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}

DYNAMIC = (
    "export it with a dynamic axis (torch.onnx.export: dynamic_shapes or dynamic_axes; tf2onnx: None in the input "
    "signature)"
)


def graph_faults(path: Path, stage: Stage, labels: int | None, made_up: Sequence[str]) -> list[str]:
    """Each fault of a file, none where it keeps the contract. made_up: outputs of the stage that it may lack."""
    model = _read(path)
    if isinstance(model, str):
        return [f"{path.name}: {model}"]
    found = [*_operator_faults(model), *_weight_faults(model, path.parent)]
    found += _signature_faults(model, stage, labels, made_up)
    return [f"{path.name}: {fault}" for fault in found or _validity_faults(path)]


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the graph is fed; old graphs name their weights among the inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [info for info in graph.input if info.name not in weights]


def _read(path: Path) -> onnx.ModelProto | str:
    """The graph without its weights, or why there is none."""
    if not path.is_file():
        return "is missing; every stage of the contract needs its graph"
    if path.stat().st_size > MAX_PROTOBUF_BYTES:
        return (
            f"got {path.stat().st_size:,} bytes; an ONNX file holds less than 2 GiB: keep its weights beside it "
            "(onnx.save_model with save_as_external_data=True)"
        )
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf and onnx several kinds
        return f"can't be read as ONNX ({first_line(error)}); export it again, or copy it again"
    if not model.graph.node:
        return "holds no graph; export it again, or copy it again"
    return model


def _operator_faults(model: onnx.ModelProto) -> Iterator[str]:
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 0)
    newest = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= newest:
        yield f"got opset {opset}; expected {LEAST_OPSET} to {newest}: export it with opset_version=18"
    own = {function.domain for function in model.functions}
    custom = sorted({f"{n.domain}.{n.op_type}" for n in _nodes(model) if n.domain not in (*STANDARD_DOMAINS, *own)})
    if custom:
        yield (
            f"got custom operators {', '.join(custom[:5])}; expected ONNX's own alone, which every engine compiles: "
            "export it before any runtime optimises it"
        )


def _weight_faults(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    """Of weights beside the graph: a file that isn't there, is too short, or isn't below the folder."""
    told = set()
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        fault = _location_fault(entries.get("location", ""), folder) or _extent_fault(tensor, entries, folder)
        if fault and fault not in told:
            told.add(fault)
            yield fault


def _location_fault(location: str, folder: Path) -> str | None:
    parts = (PurePosixPath(location), PureWindowsPath(location))
    path = folder / location
    if not location or any(p.is_absolute() or p.drive or ".." in p.parts for p in parts):
        return f"got weights in {location!r}, outside of the graph's folder; expected a file beside it: move it there"
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        return f"got weights in {location!r}, which is a link; expected a file beside the graph: copy it there"
    if not path.is_file():
        return f"lacks its weights {location!r}: copy that file beside it, under the same name"
    return None


def _extent_fault(tensor: TensorProto, entries: dict[str, str], folder: Path) -> str | None:
    location = entries["location"]
    size = (folder / location).stat().st_size
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", _bytes_of(tensor)))
    except ValueError:
        return f"names no place in {location!r} for a weight; export it again"
    if offset < 0 or length < 0 or offset + length > size:
        return f"got {size:,} bytes in {location!r}, too few for its weights; it was cut: copy it again"
    return None


def _bytes_of(tensor: TensorProto) -> int:
    size: int = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size


def _signature_faults(
    model: onnx.ModelProto, stage: Stage, labels: int | None, made_up: Sequence[str]
) -> Iterator[str]:
    graph = _with_shapes(model).graph
    for side, infos, specs in (
        ("input", real_inputs(graph), stage.inputs),
        ("output", list(graph.output), stage.outputs),
    ):
        found = {info.name: info for info in infos}
        unknown = [name for name in found if name not in {spec.name for spec in specs}]
        for spec in specs:
            if spec.name in found:
                yield from _tensor_faults(found[spec.name], spec, labels, f"{side} {spec.name}")
            elif spec.name not in made_up:
                rename = f" (the graph has {', '.join(unknown[:5])}: rename it)" if unknown else ""
                yield f"{side} {spec.describe()} is missing{rename}"
        if side == "input" and unknown:
            yield f"got inputs {', '.join(unknown[:5])}; expected {', '.join(spec.name for spec in specs)} alone"


def _tensor_faults(info: onnx.ValueInfoProto, spec: TensorSpec, labels: int | None, where: str) -> Iterator[str]:
    tensor = info.type.tensor_type
    if tensor.elem_type != ELEMENT_TYPES[spec.dtype]:
        got = TensorProto.DataType.Name(tensor.elem_type)
        yield f"{where}: got type {got}; expected {spec.describe()}: cast inside the graph"
    if not tensor.HasField("shape"):
        return  # an output whose shape nobody wrote down: the trial sees it
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if len(dims) != len(spec.axes) + 1:
        yield f"{where}: got {len(dims)} axes {dims}; expected {spec.describe()}"
        return
    if dims[0] != -1:
        yield f"{where}: got a batch of {dims[0]} alone; expected any: {DYNAMIC}"
    for dim, axis in zip(dims[1:], spec.axes, strict=True):
        if dim == -1:
            continue
        if axis == LABELS and labels not in (None, dim):
            yield f"{where}: got {dim} labels; the description names {labels}: name each, in the order of the output"
        elif len(axis.sizes) > 1:
            yield f"{where}: got {axis.name} of {dim} alone; expected {', '.join(map(str, axis.sizes))}: {DYNAMIC}"
        elif axis.sizes and dim != axis.dim:
            yield f"{where}: got {axis.name} of {dim}; expected {spec.describe()}"


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the shapes of outputs that follow from the graph; as it is where they don't."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # what is wrong is told by the checker
        return model


def _validity_faults(path: Path) -> list[str]:
    try:
        onnx.checker.check_model(str(path))  # shape inference can't follow small constants that lie beside a graph
    except Exception as error:  # of the checker and protobuf
        return [f"isn't valid ONNX: {first_line(error)}"]
    return []


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, also those of functions and of the bodies of If and Loop."""
    yield from (node for function in model.functions for node in _all_of(function.node))
    yield from _all_of(model.graph.node)


def _all_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _bodies(node):
            yield from _all_of(graph.node)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute for graph in ((a.g, *a.graphs) if a.HasField("g") else a.graphs)]


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every weight, wherever it is."""
    yield from model.graph.initializer
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from ((attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors)
        yield from (tensor for graph in _bodies(node) for tensor in graph.initializer)


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
