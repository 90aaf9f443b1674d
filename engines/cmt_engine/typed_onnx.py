"""Precision written into an ONNX graph, for engines that take it from there.

TensorRT 11 and TensorRT for RTX know only strongly typed networks: a tensor has the type that the graph gives
it, and no builder flag changes that. So this pass types the graph. Its rule is that of torch.autocast
(PyTorch documentation of torch.amp, "CUDA Op-Specific Behavior"): products run narrow (fp16 or bf16),
statistics and exponentials run in fp32, and so does all that a logarithm is taken of (the powers of a spectrum lie
orders of magnitude apart); everything between takes the widest type that comes in. To the rule come the tensors
that were measured to leave fp16's range (activation_ranges): whatever reads or makes one of them runs in fp32.

Softmax in fp32 between two narrow products is still one attention kernel to TensorRT (`_gemm_mha_v2`), and a
narrow Erf lets it fold GELU into the product before it; both were read from the kernels in a TensorRT-RTX
plan.

What the contract sees doesn't change: inputs and outputs keep their names and types.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, get_args

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, ShapeInferencePass
from onnxscript.version_converter import convert_version

TypedPrecision = Literal["fp32", "fp16", "bf16"]

NARROW_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

#: The first opset in which every product takes bfloat16 (Conv, in onnx's operator changelog).
BF16_OPSET = 22

#: Nearly all of the time and of the weights. These run narrow.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

ARITHMETIC = frozenset({"Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Where"})
ACTIVATIONS = frozenset({"Erf", "Gelu", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
MOVES = frozenset({"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"})
SHAPES = frozenset({"Squeeze", "Tile", "Transpose", "Unsqueeze"})

#: Run in the widest type among their inputs. What is in neither set runs in fp32: LayerNormalization,
#: Softmax, reductions, Pow, Sqrt, Exp and whatever else may overflow in fp16 or lose its sums.
WIDEST = ARITHMETIC | ACTIVATIONS | MOVES | SHAPES

#: Take any type and give back none of it.
TYPELESS = frozenset({"Shape", "Size"})

INLINE_BYTES = 1024  # smaller tensors stay in the graph's own file


def onnx_in_precision(
    source: Path, precision: TypedPrecision, target: Path, fp32_tensors: Collection[str] = ()
) -> Path:
    """Writes the graph at `source` to `target`, computing in `precision`; returns `target`.

    fp32_tensors: names of tensors that stay in fp32 beyond the rule. Weights go to `<target>.data` beside it, so
    that they may exceed protobuf's 2 GB. A constant that the narrow type can't hold (a mask's -3.4e38, an epsilon of
    1e-12) keeps its operator in fp32. bf16 raises the opset to 22. ValueError for another precision and for a target
    that is the source; whatever onnx.checker raises if the result is no valid ONNX.
    """
    if precision not in get_args(TypedPrecision):
        raise ValueError(f"got precision {precision!r}, expected one of {get_args(TypedPrecision)}")
    if target.resolve() == source.resolve():
        raise ValueError(f"target {target} is the source itself; name another file")
    model = ir.load(source)
    if precision != "fp32":
        _typing(model, precision, fp32_tensors).apply()
    _save(model, target)
    onnx.checker.check_model(str(target), full_check=True)
    return target


def narrow_tensors(source: Path, precision: TypedPrecision) -> frozenset[str]:
    """Names of the tensors that the rule alone would compute in a narrow type, or round to it on their way."""
    return frozenset() if precision == "fp32" else _typing(ir.load(source), precision, ()).narrow_names()


def _typing(model: ir.Model, precision: TypedPrecision, fp32_tensors: Collection[str]) -> _Typing:
    InlinePass()(model)
    if precision == "bf16":
        convert_version(model, max(BF16_OPSET, model.opset_imports[""]))
    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    ShapeInferencePass()(model)
    return _Typing(model.graph, NARROW_TYPES[precision], fp32_tensors)


def onnx_files(path: Path) -> tuple[Path, ...]:
    """The ONNX file at `path` and the files that hold its external weights, in the order of their names."""
    graph = onnx.load(path, load_external_data=False).graph
    names = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return (path, *(path.parent / name for name in sorted(names)))


class _Typing:
    """Decides where a graph runs narrow; `apply` then puts casts on the borders."""

    def __init__(self, graph: ir.Graph, narrow: ir.DataType, fp32_tensors: Collection[str]) -> None:
        self.graph = graph
        self.narrow = narrow
        self.fp32_tensors = frozenset(fp32_tensors)
        self.narrow_values: set[ir.Value] = set()
        self.narrow_nodes: set[ir.Node] = set()
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.fitting: dict[ir.Value, bool] = {}
        self.nodes = list(graph.all_nodes())
        self.before_logarithms = _with_all_before(node for node in self.nodes if node.op_type == "Log")
        for node in self.nodes:
            if node.graph is graph and self._runs_narrow(node):
                self.narrow_nodes.add(node)
                self.narrow_values.update(_floats(node.outputs))

    def narrow_names(self) -> frozenset[str]:
        rounded = {value for node in self.narrow_nodes for value in _floats(node.inputs) if not value.is_initializer()}
        return frozenset(value.name or "" for value in self.narrow_values | rounded)

    def apply(self) -> None:
        for node in self.nodes:
            if node.op_type in TYPELESS:
                continue
            target_type = self.narrow if node in self.narrow_nodes else ir.DataType.FLOAT
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == ir.DataType.FLOAT and self._type_of(value) != target_type:
                    node.replace_input_with(index, self._cast(value, target_type))
        self._restore_outputs()
        for value in self.narrow_values:
            value.dtype = self.narrow
        for name in [name for name, value in self.graph.initializers.items() if not _used(value)]:
            del self.graph.initializers[name]

    def _runs_narrow(self, node: ir.Node) -> bool:
        floats = _floats(node.inputs)
        computed = [value for value in floats if not value.is_initializer()]
        if node in self.before_logarithms or any(v.name in self.fp32_tensors for v in (*floats, *node.outputs)):
            return False
        if node.domain not in ("", "ai.onnx") or not (computed or _looks_up_embedding(node)):
            return False
        if not all(self._fits(value) for value in floats if value.is_initializer()):
            return False
        if node.op_type in PRODUCTS or _looks_up_embedding(node):
            return True
        if node.op_type == "Div" and not floats[-1].is_initializer():
            return False  # divides by a statistic
        return node.op_type in WIDEST and self.narrow_values.issuperset(computed)

    def _fits(self, constant: ir.Value) -> bool:
        """Whether the narrow type holds it. A weight near zero may round to zero, a lone number may not."""
        if constant not in self.fitting:
            tensor = constant.const_value
            assert tensor is not None
            sizes = np.abs(tensor.numpy())
            sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
            limits = ml_dtypes.finfo(self.narrow.numpy())  # type: ignore[no-untyped-call]
            smallest = limits.smallest_normal if tensor.size == 1 else 0.0
            self.fitting[constant] = bool(np.all((smallest <= sizes) & (sizes <= limits.max)))
        return self.fitting[constant]

    def _type_of(self, value: ir.Value) -> ir.DataType:
        return self.narrow if value in self.narrow_values else ir.DataType.FLOAT

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`: once for all that ask for it."""
        key = (value, dtype)
        if key not in self.casts:
            name = f"{value.name}_{dtype.name.lower()}"
            if value.is_initializer() and value.const_value is not None:
                self.casts[key] = self._constant(name, value.const_value, dtype)
            else:
                self.casts[key] = self._cast_node(name, value, dtype)
        return self.casts[key]

    def _constant(self, name: str, tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.Value:
        converted = ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=converted.shape, const_value=converted)
        self.graph.register_initializer(value)
        return value

    def _cast_node(self, name: str, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        node = ir.node("Cast", [value], {"to": dtype.value}, outputs=[output], name=f"node_{name}")
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            assert producer.graph is not None
            producer.graph.insert_after(producer, node)
        return output

    def _restore_outputs(self) -> None:
        """Outputs of the graph keep fp32 under their own names."""
        for index, value in enumerate(self.graph.outputs):
            if value in self.narrow_values:
                wide = self._cast(value, ir.DataType.FLOAT)
                name = value.name
                value.name = f"{name}_{self.narrow.name.lower()}"
                wide.name = name
                self.graph.outputs[index] = wide


def _with_all_before(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes and those that the numbers which they read come from; not what merely says where, as an index."""
    found: set[ir.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            producers = (value.producer() for value in _floats(node.inputs))
            left += [producer for producer in producers if producer is not None]
    return found


def _floats(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None and value.dtype == ir.DataType.FLOAT]


def _looks_up_embedding(node: ir.Node) -> bool:
    """Gather of rows from a table of weights."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.is_initializer() and table.shape is not None and len(table.shape) == 2


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _save(model: ir.Model, target: Path) -> None:
    """Both files appear under their names whole or not at all: written beside them and moved."""
    data = f"{target.name}.data"
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        ir.save(model, Path(folder) / target.name, external_data=data, size_threshold_bytes=INLINE_BYTES)
        for name in (data, target.name):
            if (Path(folder) / name).exists():
                os.replace(Path(folder) / name, target.parent / name)
