"""TensorSpec: name, dtype and named axes of every tensor that crosses a stage's border.

These specs are the one source of ONNX names and dynamic axes, TensorRT profiles, Triton configurations, client
inputs and shape checks. The batch axis comes first everywhere and is not part of a spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmt_pipeline.buckets import AUDIO_FRAMES, AUDIO_SAMPLES, TEXT_TOKENS

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

#: Triton's datatype names (KServe v2 protocol, "Tensor Data Types").
DType = Literal["BYTES", "FP32", "INT64"]

NUMPY_DTYPES: dict[DType, np.dtype[np.generic]] = {
    "BYTES": np.dtype(np.object_),
    "FP32": np.dtype(np.float32),
    "INT64": np.dtype(np.int64),
}


@dataclass(frozen=True)
class Axis:
    """One named axis. `sizes` are the lengths it may take, ascending; empty when the label set decides."""

    name: str
    sizes: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        """The axis as Triton and ONNX write it: its size where fixed, else -1."""
        return self.sizes[0] if len(self.sizes) == 1 else -1


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of shape [batch, *axes]."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions without batch, -1 where the length varies."""
        return tuple(axis.dim for axis in self.axes)

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        return NUMPY_DTYPES[self.dtype]

    def describe(self) -> str:
        """For error messages: `pixel_values FP32 [batch, channels=3, height=224, width=224]`."""
        axes = (a.name if a.dim == -1 else f"{a.name}={a.dim}" for a in self.axes)
        return f"{self.name} {self.dtype} [batch, {', '.join(axes)}]"

    def mismatch(self, array: Array) -> str | None:
        """What is wrong with `array` under this spec, or None."""
        if array.dtype != self.numpy_dtype:
            return f"got dtype {array.dtype}, expected {self.describe()}"
        fits = array.ndim == len(self.dims) + 1 and all(
            not axis.sizes or size in axis.sizes for axis, size in zip(self.axes, array.shape[1:], strict=True)
        )
        if fits and array.shape[0] > 0:
            return None
        allowed = "; ".join(f"{a.name} in {list(a.sizes)}" for a in self.axes if len(a.sizes) > 1)
        return f"got shape {list(array.shape)}, expected {self.describe()}" + (f" with {allowed}" if allowed else "")


IMAGE_SIDE = 224
PATCH_SIDE = 16
IMAGE_TOKENS = (IMAGE_SIDE // PATCH_SIDE) ** 2 + 1  # 14 x 14 patches and the class token
MODEL_WIDTH = 256  # d_model of the fusion, the same in every preset: our choice, the paper's abstract names none
ABSENT_TOKENS = 1  # length of the masked stand-in for a modality that a pipeline doesn't take

ITEM = Axis("item", (1,))
CHANNELS = Axis("channels", (3,))
HEIGHT = Axis("height", (IMAGE_SIDE,))
WIDTH = Axis("width", (IMAGE_SIDE,))
SAMPLES = Axis("samples", AUDIO_SAMPLES)
TOKENS = Axis("tokens", TEXT_TOKENS)
PATCHES = Axis("patches", (IMAGE_TOKENS,))
FRAMES = Axis("frames", AUDIO_FRAMES)
ABSENT = Axis("absent", (ABSENT_TOKENS,))
MODEL = Axis("model", (MODEL_WIDTH,))
LABELS = Axis("labels")


def or_absent(axis: Axis) -> Axis:
    """The axis as `fuse` takes it: it may also have the length of the stand-in."""
    return Axis(axis.name, (ABSENT_TOKENS, *axis.sizes))
