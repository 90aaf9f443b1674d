"""Small ONNX graphs with the contract's names and the real stages' operators, for tests of their compilers.

Each is exported by torch as the real ones are, once in a test run.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from cmt_pipeline.buckets import CONV_KERNELS, CONV_STRIDES
from cmt_pipeline.stages import STAGES, Stage, sized
from cmt_pipeline.tensors import DEFAULT_SIZES, MODEL_WIDTH, Array

HIDDEN, HEADS, WORDS, LABELS = 32, 2, 100, 7

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT for RTX isn\'t installed: pip install "cmt-triton[tensorrt-rtx]"',
)


class Attention(nn.Module):
    """Masked self-attention and a feed-forward net, post-norm: [batch, tokens, HIDDEN] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.norm = nn.LayerNorm(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, _ = hidden.shape
        query, key, value = (
            projection(hidden).view(batch, tokens, HEADS, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        bias = (1 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(torch.float32).min
        weights = functional.softmax(query @ key.transpose(2, 3) / (HIDDEN / HEADS) ** 0.5 + bias, dim=-1)
        hidden = self.norm(hidden + (weights @ value).transpose(1, 2).reshape(batch, tokens, HIDDEN))
        return hidden + self.down(functional.gelu(self.up(hidden)))


class Encoder(nn.Module):
    """What both encoders end in."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.projection = nn.Linear(HIDDEN, MODEL_WIDTH)
        self.absent = nn.Parameter(torch.randn(1, 1, MODEL_WIDTH))

    def finish(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        batch = hidden.shape[0]
        features = self.projection(self.attention(hidden, mask))
        absent_mask = torch.zeros((batch, 1), dtype=torch.int64)
        return features, mask, self.absent.expand(batch, 1, MODEL_WIDTH), absent_mask


class TextEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, HIDDEN), nn.Embedding(128, HIDDEN)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        positions = self.positions(torch.arange(input_ids.shape[1]))
        return self.finish(self.words(input_ids) + positions, attention_mask)


class AudioEncoder(Encoder):
    """Seven convolutions; after the first a normalisation of each channel over the clip's own frames."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, *[HIDDEN] * len(CONV_KERNELS))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels[i], HIDDEN, kernel, stride, bias=False)
            for i, (kernel, stride) in enumerate(zip(CONV_KERNELS, CONV_STRIDES, strict=True))
        )

    def forward(self, input_values: Tensor, num_samples: Tensor) -> tuple[Tensor, ...]:
        hidden = input_values[:, None]
        for index, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden)
            if index == 0:
                own = self.below(hidden, num_samples, CONV_KERNELS[0], CONV_STRIDES[0])
                hidden = self.normalised(hidden, own[:, None].to(hidden.dtype))
            hidden = functional.gelu(hidden)
        mask = self.below(hidden, num_samples, 400, 320)  # of the seven together
        return self.finish(hidden.transpose(1, 2), mask.to(torch.int64))

    @staticmethod
    def below(hidden: Tensor, num_samples: Tensor, kernel: int, stride: int) -> Tensor:
        """Which positions [batch, time] lie within the clip."""
        lengths = torch.div(num_samples - kernel, stride, rounding_mode="trunc") + 1
        return torch.arange(hidden.shape[2])[None, :] < lengths

    @staticmethod
    def normalised(hidden: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(dim=2, keepdim=True)
        centred = hidden - (hidden * mask).sum(dim=2, keepdim=True) / count
        variance = (centred.pow(2) * mask).sum(dim=2, keepdim=True) / count
        return centred / torch.sqrt(variance + 1e-5)


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.attention = nn.Linear(MODEL_WIDTH, HIDDEN), Attention()
        self.labels, self.moods = nn.Linear(HIDDEN, LABELS), nn.Linear(HIDDEN, 2)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        features, masks = inputs[::2], inputs[1::2]
        hidden = self.attention(self.narrow(torch.cat(features, dim=1)), torch.cat(masks, dim=1))
        pooled = (hidden * torch.cat(masks, dim=1)[..., None].to(hidden.dtype)).sum(dim=1)
        presence = torch.stack([mask.amax(dim=1) for mask in masks], dim=1).to(hidden.dtype)
        logits = self.labels(pooled)
        shares = presence / presence.sum(dim=1, keepdim=True)
        return logits, functional.softmax(logits, dim=-1), torch.tanh(self.moods(pooled)), shares


MODULES: Mapping[str, type[nn.Module]] = {
    "encode_text": TextEncoder,
    "encode_audio": AudioEncoder,
    "fuse": Fusion,
}


@functools.cache
def small_graph(stage_name: str) -> Path:
    """`model.onnx` of a small module in the stage's place, with its weights in `model.onnx.data`."""
    stage = STAGES[stage_name]
    folder = Path(tempfile.mkdtemp(prefix="cmt-small-graph-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            MODULES[stage_name]().eval(),
            tuple(torch.from_numpy(array) for array in small_inputs(stage, middle=True).values()),
            str(folder / "model.onnx"),
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            dynamic_shapes=_dynamic_shapes(stage),
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    return folder / "model.onnx"


def small_inputs(stage: Stage, middle: bool = False) -> dict[str, Array]:
    """Two items, the second half padding: in the smallest real bucket, or in the middle one."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for spec in sized(stage, DEFAULT_SIZES).inputs:
        shape = [2]
        for axis in spec.axes:
            real = [size for size in axis.sizes if size > 1] or [1]
            shape.append(real[len(real) // 2] if middle else real[0])
        if spec.dtype == "FP32":
            arrays[spec.name] = rng.normal(size=shape).astype(np.float32)
        elif spec.name == "num_samples":
            arrays[spec.name] = np.array([[16_000], [8_000]], dtype=np.int64)
        elif spec.name == "input_ids":
            arrays[spec.name] = rng.integers(0, WORDS, shape)
        else:
            arrays[spec.name] = np.ones(shape, dtype=np.int64)
            arrays[spec.name][1, shape[1] // 2 :] = 0
    return arrays


def _dynamic_shapes(stage: Stage) -> tuple[object, ...]:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple(
        {0: batch} | {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.axes, 1) if axis.dim == -1}
        for spec in sized(stage, DEFAULT_SIZES).inputs
    )
    return (shapes,) if stage.name == "fuse" else shapes


def text_graph(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], ids_type: int = TensorProto.INT64
) -> onnx.ModelProto:
    """A hand-made graph with the inputs and outputs of encode_text, whose nodes make `text_features`."""
    int64, tokens = TensorProto.INT64, ["batch", "tokens"]
    features = helper.make_tensor("absent", TensorProto.FLOAT, [1, 1, 256], [0.0] * 256)
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Identity", ["attention_mask"], ["text_mask"]),
            helper.make_node("Shape", ["attention_mask"], ["count"], start=0, end=1),
            helper.make_node("Concat", ["count", "ones"], ["features_shape"], axis=0),
            helper.make_node("Expand", ["absent", "features_shape"], ["absent_features"]),
            helper.make_node("Concat", ["count", "one"], ["mask_shape"], axis=0),
            helper.make_node("Expand", ["zero", "mask_shape"], ["absent_mask"]),
        ],
        "text",
        [
            helper.make_tensor_value_info("input_ids", ids_type, tokens),
            helper.make_tensor_value_info("attention_mask", int64, tokens),
        ],
        [
            helper.make_tensor_value_info("text_features", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("text_mask", int64, tokens),
            helper.make_tensor_value_info("absent_features", TensorProto.FLOAT, ["batch", 1, 256]),
            helper.make_tensor_value_info("absent_mask", int64, ["batch", 1]),
        ],
        [
            *weights,
            features,
            helper.make_tensor("ones", int64, [2], [1, 256]),
            helper.make_tensor("one", int64, [1], [1]),
            helper.make_tensor("zero", int64, [1, 1], [0]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
