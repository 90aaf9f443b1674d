"""How large the tensors of an ONNX graph get on samples, and what fp16 would make of them.

fp16 ends at 65,504 and has fewer digits below 6e-5, none below 6e-8. The graph is run in fp32 with reductions beside
every floating tensor, so that no tensor has to be kept. NVIDIA's ModelOpt AutoCast, too, keeps in fp32 what leaves a
range on samples; its default limit is 512 (github.com/NVIDIA/Model-Optimizer, docs/source/guides/8_autocast.rst). Here
it is a quarter of fp16's, and what rounds away counts too.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, ShapeInferencePass

from cmt_pipeline.tensors import Arrays

FP16_LARGEST = 65_504.0
HEADROOM = 4  # samples don't hold the largest that will come
#: Of a tensor's root mean square. Rounding to fp16's 11 bits takes up to 2.8e-4; more is of values below 6e-5.
MOST_ROUNDED = 2e-3

#: What is measured of a tensor -> how: its largest magnitude, the sum of squares that fp16 rounds away, and of all.
FIGURES = {"largest": "ReduceMax", "lost": "ReduceSumSquare", "whole": "ReduceSumSquare"}

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's metadata of a node: the modules that it lies in


@dataclass(frozen=True)
class ActivationRange:
    """Of a tensor, over all samples.

    op, layer: what makes it (a layer is a module up to the last number in its name, "" outside of all); largest:
    magnitude; rounded: root mean square of what fp16 would round away over that of the tensor, infinite where it
    overflows.
    """

    name: str
    op: str
    layer: str
    largest: float
    rounded: float

    @property
    def too_large(self) -> bool:
        return not self.largest * HEADROOM <= FP16_LARGEST

    @property
    def too_small(self) -> bool:
        return not self.too_large and not self.rounded <= MOST_ROUNDED


def activation_ranges(path: Path, samples: Iterable[Arrays], threads: int = 0) -> list[ActivationRange]:
    """One for each floating tensor that the graph at `path` computes, in its order.

    samples: contract inputs; threads: 0 takes one for each core. ValueError without any sample.
    """
    model = ir.load(path)
    for prepare in (InlinePass(), LiftConstantsToInitializersPass(lift_all_constants=True), ShapeInferencePass()):
        prepare(model)
    watched = [(node, value) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    names = [name for index, (_, value) in enumerate(watched) for name in _watch(model.graph, value, index)]
    figures = np.array(list(_runs(model, path.parent, names, samples, threads)), np.float64)
    if not len(figures):
        raise ValueError("got no samples; expected one at least")
    figures = figures.reshape(len(figures), len(watched), len(FIGURES))
    largest, lost, whole = figures[..., 0].max(axis=0), figures[..., 1].sum(axis=0), figures[..., 2].sum(axis=0)
    return [
        ActivationRange(value.name or "", node.op_type, _layer(node), float(most), _rounded(float(gone), float(of)))
        for (node, value), most, gone, of in zip(watched, largest, lost, whole, strict=True)
    ]


def beyond_fp16(ranges: Iterable[ActivationRange]) -> dict[str, float]:
    """Tensors that fp16 doesn't hold -> their largest magnitudes: what `onnx_in_precision` is to keep in fp32."""
    return {found.name: found.largest for found in ranges if found.too_large or found.too_small}


def _watch(graph: ir.Graph, value: ir.Value, index: int) -> list[str]:
    """More outputs, FIGURES of a tensor; their names."""
    narrow = _node(graph, "Cast", value, f"watched_{index}_narrow", to=ir.DataType.FLOAT16)
    wide = _node(graph, "Cast", narrow, f"watched_{index}_wide", to=ir.DataType.FLOAT)
    gone = _node(graph, "Sub", value, f"watched_{index}_gone", wide)
    sources = {"largest": _node(graph, "Abs", value, f"watched_{index}_size"), "lost": gone, "whole": value}
    made = [_node(graph, op, sources[kind], f"watched_{index}_{kind}", keepdims=0) for kind, op in FIGURES.items()]
    graph.outputs.extend(made)
    return [output.name or "" for output in made]


def _node(graph: ir.Graph, op: str, first: ir.Value, name: str, *more: ir.Value, **attributes: int) -> ir.Value:
    dtype = ir.DataType(attributes.get("to", ir.DataType.FLOAT))
    made = ir.Value(
        name=name, type=ir.TensorType(dtype), shape=ir.Shape([]) if "keepdims" in attributes else first.shape
    )
    graph.append(ir.node(op, [first, *more], attributes, outputs=[made], name=f"node_{name}"))
    return made


def _runs(
    model: ir.Model, weights: Path, names: list[str], samples: Iterable[Arrays], threads: int
) -> Iterator[list[float]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    source = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    for sample in samples:
        arrays = {name: np.ascontiguousarray(array) for name, array in sample.items()}
        yield [float(figure) for figure in session.run(names, arrays)]


def _rounded(lost: float, whole: float) -> float:
    """NaN, of infinities among the values, counts as overflow."""
    return math.sqrt(lost / whole) if math.isfinite(lost) and whole > 0 else (0.0 if lost == 0 else math.inf)


def _layer(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    module = scopes[-2] if len(scopes) > 1 else ""  # the last is the operator's own
    found = re.match(r"(?:encoder\.)?(?:backbone\.)?(.*\.\d+)(?:\.|$)", module)
    return found[1] if found else ""
