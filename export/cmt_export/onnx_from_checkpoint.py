"""Checkpoint -> ONNX, one file a compiled stage, with the contract's names and dynamic axes.

Weights lie beside the graph (`model.onnx` + `model.onnx.data`), so that the 2 GiB limit of a protobuf message never
matters.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmt_engine.engine import Traceable
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.stages import Stage, sized
from cmt_pipeline.tensors import TensorSpec

OPSET = 18
MODEL_FILE = "model.onnx"
TRACE_BATCH = 2


def onnx_from_checkpoint(model: CrossModalTransformer, stage: Stage, folder: Path) -> Path:
    """Writes the stage into `folder` and checks it with onnx.checker and against the contract; the graph's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    module = _for_export(model.stage(stage))
    batch = torch.export.Dim("batch", min=1)
    stage = sized(stage, model.sizes)
    with _quiet():
        torch.onnx.export(
            module,
            tuple(example(spec) for spec in stage.inputs),
            str(path),
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            dynamic_shapes=_dynamic_shapes(stage, batch),
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
        )
    onnx.checker.check_model(str(path), full_check=True)
    check_contract(path, stage)
    return path


def traceable(model: CrossModalTransformer, stage: Stage) -> Traceable:
    """The stage for engines that start from PyTorch."""
    stage = sized(stage, model.sizes)
    shapes = _dynamic_shapes(stage, torch.export.Dim("batch", min=1))
    if stage.kind == "encode":
        (shapes,) = shapes  # type: ignore[assignment]
    return Traceable(model.stage(stage), tuple(example(spec) for spec in stage.inputs), shapes)


def check_contract(path: Path, stage: Stage) -> None:
    """ValueError unless the graph's inputs and outputs have the names, order, types and fixed sizes of the stage."""
    graph = onnx.load(str(path), load_external_data=False).graph
    for side, infos, specs in (
        ("inputs", graph.input, stage.inputs),
        ("outputs", graph.output, stage.outputs),
    ):
        got = [_describe(info) for info in infos]
        if len(got) != len(specs) or not all(_fits(c, s) for c, s in zip(got, specs, strict=True)):
            expected = [spec.describe() for spec in specs]
            raise ValueError(f"{path}: {side}: got {got}; the contract of {stage.name} expects {expected}")


def example(spec: TensorSpec) -> Tensor:
    """A tensor to trace with: batch 2, a middle size on each dynamic axis."""
    shape = [TRACE_BATCH, *(axis.sizes[len(axis.sizes) // 2] for axis in spec.axes)]
    if spec.dtype == "FP32":
        return torch.randn(shape)
    if spec.name == "num_samples":
        return torch.full(shape, 10_000, dtype=torch.int64)
    return torch.ones(shape, dtype=torch.int64)


def _dynamic_shapes(stage: Stage, batch: torch.export.Dim) -> tuple[object, ...]:
    """One dimension object for each axis name, shared by all tensors that have the axis."""
    dims = {axis.name: torch.export.Dim.DYNAMIC for spec in stage.inputs for axis in spec.axes if axis.dim == -1}
    shapes = tuple(
        {0: batch} | {index + 1: dims[axis.name] for index, axis in enumerate(spec.axes) if axis.dim == -1}
        for spec in stage.inputs
    )
    # torch.export wants a variadic forward's shapes as one argument
    return (shapes,) if stage.kind == "encode" else shapes


def _for_export(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode with its attention written out.

    Written out, attention is MatMul, Add, Softmax, MatMul, which every engine fuses; PyTorch's fused one is exported
    with a guard against rows without any key, which don't occur here.
    """
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
    return module


def _describe(info: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
    tensor = info.type.tensor_type
    return (
        info.name,
        tensor.elem_type,
        [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim],
    )


def _fits(got: tuple[str, int, list[int]], spec: TensorSpec) -> bool:
    name, elem_type, dims = got
    expected = {"FP32": onnx.TensorProto.FLOAT, "INT64": onnx.TensorProto.INT64}[spec.dtype]
    sizes = zip(dims[1:], spec.axes, strict=False)
    return (
        name == spec.name
        and elem_type == expected
        and len(dims) == len(spec.axes) + 1
        and dims[0] == -1
        and all(size == axis.dim or not axis.sizes for size, axis in sizes)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints each of its steps and warns of what doesn't concern us; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
