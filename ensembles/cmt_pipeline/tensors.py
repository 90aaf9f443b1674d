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
from cmt_pipeline.modality import MODALITIES, Modality

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
    """One named axis. `sizes` are the lengths it may take, ascending; empty when a release decides."""

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
ABSENT_TOKENS = 1  # length of the masked stand-in for a modality that a pipeline doesn't take
MODEL_WIDTH = 256  # of the models that are made here: our choice, the paper's abstract names none

ITEM = Axis("item", (1,))
CHANNELS = Axis("channels", (3,))
HEIGHT = Axis("height", (IMAGE_SIDE,))
WIDTH = Axis("width", (IMAGE_SIDE,))
SAMPLES = Axis("samples", AUDIO_SAMPLES)
TOKENS = Axis("tokens", TEXT_TOKENS)
ABSENT = Axis("absent", (ABSENT_TOKENS,))
#: What a release decides: the tokens of its features, their width, its labels.
FEATURE_AXIS: dict[Modality, Axis] = {m: Axis(f"{m}_tokens") for m in MODALITIES}
MODEL = Axis("model")
LABELS = Axis("labels")


@dataclass(frozen=True)
class Sizes:
    """How many tokens a release's encoders make of each bucket of their input (ascending), and how wide they are.

    The defaults are those of a Vision Transformer with patches of 16, a Wav2Vec2 and a BERT.
    """

    image: tuple[int, ...] = (197,)  # 14 x 14 patches and the class token
    audio: tuple[int, ...] = AUDIO_FRAMES
    text: tuple[int, ...] = TEXT_TOKENS
    width: int = MODEL_WIDTH

    def tokens(self, modality: Modality) -> tuple[int, ...]:
        sizes: tuple[int, ...] = getattr(self, modality)
        return sizes

    def axes(self, *, absent: bool = False) -> dict[str, Axis]:
        """The axes that they decide, by name. absent: with the length of a stand-in, as `fuse` meets it."""
        more = {ABSENT_TOKENS} if absent else set()
        found = [Axis(axis.name, tuple(sorted({*self.tokens(m), *more}))) for m, axis in FEATURE_AXIS.items()]
        return {axis.name: axis for axis in (*found, Axis(MODEL.name, (self.width,)))}


DEFAULT_SIZES = Sizes()


def resolved(spec: TensorSpec, labels: int, width: int = -1) -> tuple[int, ...]:
    """The dimensions of a tensor of a release with so many labels and features so wide, without batch."""
    known = {LABELS: labels, MODEL: width}
    return tuple(known.get(axis, axis.dim) for axis in spec.axes)
