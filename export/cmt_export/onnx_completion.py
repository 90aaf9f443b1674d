"""A given graph as every engine takes it: the contract's tensors in their order, nothing else, and the outputs that
follow from those it has.

An encoder made elsewhere knows nothing of the stand-in for absent modalities, and need not: it is zeros with a mask of
zeros. Nor need it say that all of a picture is real, that a text's mask is the one it was given, or what the softmax of
its logits is.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper, inliner, numpy_helper

from cmt_export.onnx_checks import ELEMENT_TYPES
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import ABSENT_TOKENS, LABELS, TensorSpec

MODEL_FILE = "model.onnx"
INLINE_BYTES = 1024  # smaller tensors stay in the graph's own file


def outputs_made_up(stage: Stage) -> tuple[str, ...]:
    """Outputs that a graph may lack, since they follow from its others."""
    if stage.modality is None:
        return ("probabilities",)
    mask = {"image": ("image_mask",), "text": ("text_mask",)}.get(stage.modality, ())
    return (*mask, "absent_features", "absent_mask")


def completed(source: Path, stage: Stage, folder: Path) -> Path:
    """Writes the graph at `source`, which keeps the contract, into `folder`; the path. Its weights lie beside it."""
    model = inliner.inline_local_functions(onnx.load(str(source)))
    graph = model.graph
    made = {info.name for info in graph.output}
    for name in outputs_made_up(stage):
        if name not in made:
            graph.node.extend(_nodes_for(name, stage))
    _declare(graph, stage)
    folder.mkdir(parents=True)
    path = folder / MODEL_FILE
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        location=f"{MODEL_FILE}.data",
        size_threshold=INLINE_BYTES,
    )
    return path


def declare_sizes(path: Path, stage: Stage, labels: int) -> None:
    """Writes the sizes that a release decides into the graph's inputs and outputs: an engine then knows them."""
    model = onnx.load(str(path), load_external_data=False)
    _declare(model.graph, stage, labels)
    onnx.save_model(model, str(path))


def _declare(graph: onnx.GraphProto, stage: Stage, labels: int | None = None) -> None:
    """The stage's inputs and outputs, in place of the graph's own."""
    for infos, specs in ((graph.input, stage.inputs), (graph.output, stage.outputs)):
        del infos[:]
        infos.extend(_info(spec, labels) for spec in specs)


def _info(spec: TensorSpec, labels: int | None) -> onnx.ValueInfoProto:
    sizes = {LABELS: labels}
    dims = ["batch", *(sizes.get(axis) or (axis.name if axis.dim == -1 else axis.dim) for axis in spec.axes)]
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.dtype], dims)


def _nodes_for(name: str, stage: Stage) -> list[NodeProto]:
    features = f"{stage.modality}_features"
    if name == "probabilities":
        return [helper.make_node("Softmax", ["logits"], [name], axis=-1)]
    if name == "text_mask":
        return [helper.make_node("Identity", ["attention_mask"], [name])]
    if name == "image_mask":
        return _filled(name, 1, TensorProto.INT64, features, [0, 1])
    if name == "absent_mask":
        return _filled(name, 0, TensorProto.INT64, features, [0, None])
    return _filled(name, 0, TensorProto.FLOAT, features, [0, None, 2])


def _filled(name: str, value: int, kind: int, like: str, axes: list[int | None]) -> list[NodeProto]:
    """`name`, filled with `value`, whose axes are as long as those of `like`; None: as the stand-in."""
    part = {axis: f"cmt/{name}/{'stand-in' if axis is None else axis}" for axis in axes}
    filling = numpy_helper.from_array(helper.tensor_dtype_to_np_dtype(kind).type(value).reshape([1] * len(axes)))
    nodes = [
        helper.make_node("Shape", [like], [f"cmt/{name}/shape"]),
        helper.make_node("Constant", [], [f"cmt/{name}/value"], value=filling),
    ]
    for axis, size in part.items():
        if axis is None:
            nodes.append(helper.make_node("Constant", [], [size], value_ints=[ABSENT_TOKENS]))
        else:
            nodes.append(helper.make_node("Constant", [], [f"{size}/index"], value_ints=[axis]))
            nodes.append(helper.make_node("Gather", [f"cmt/{name}/shape", f"{size}/index"], [size]))
    nodes.append(helper.make_node("Concat", list(part.values()), [f"cmt/{name}/dims"], axis=0))
    nodes.append(helper.make_node("Expand", [f"cmt/{name}/value", f"cmt/{name}/dims"], [name]))
    return nodes
