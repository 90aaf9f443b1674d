"""The stages: one Triton model each.

`preprocess` turns bytes into tensors, `check` lets sound tensors of a client pass, `encode_*` turn tensors into
features, `fuse` turns the features of all modalities into the answer.

Whatever can refuse a request stands before the fan-out to the encoders, in one stage for all modalities. Seen on
Triton 2.51: when a step fails while a parallel one is in flight, the ensemble never releases the request, so that
each bad file would leak its memory and its pipeline could neither be unloaded nor drained. (Fixed upstream in 2.66.)

That stage, which every request meets first, also says which release answers: it is never shared between releases, and
carries `release`, a tensor of its own, past all others (a TensorRT plan has no room for text).

A Triton ensemble can't skip a step's input, and a TensorRT plan has no optional ones. So every encoder also offers a
stand-in (`absent_features`, `absent_mask`: one token, masked out) that its pipeline passes to `fuse` for each
modality the pipeline doesn't take. The mask says absent; the values are never read as data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.tensors import (
    ABSENT,
    CHANNELS,
    FEATURE_AXIS,
    HEIGHT,
    ITEM,
    LABELS,
    MODEL,
    SAMPLES,
    TOKENS,
    WIDTH,
    Axis,
    Sizes,
    TensorSpec,
)

StageKind = Literal["preprocess", "check", "encode", "fuse"]


@dataclass(frozen=True)
class Stage:
    """One Triton model of the graph. `modality` is that of an `encode_*` stage."""

    name: str
    kind: StageKind
    modality: Modality | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def compiled(self) -> bool:
        """Whether an engine runs it; the others are Python, and take any subset of their inputs."""
        return self.kind in ("encode", "fuse")

    @property
    def stamped(self) -> bool:
        """Whether it says which release answers; each release then has a version of its own, numbered as it is."""
        return not self.compiled


RAW: dict[Modality, TensorSpec] = {m: TensorSpec(m, "BYTES", (ITEM,)) for m in MODALITIES}

READY: dict[Modality, tuple[TensorSpec, ...]] = {
    "image": (TensorSpec("pixel_values", "FP32", (CHANNELS, HEIGHT, WIDTH)),),
    # num_samples: how many of the samples are sound; the rest is padding.
    "audio": (TensorSpec("input_values", "FP32", (SAMPLES,)), TensorSpec("num_samples", "INT64", (ITEM,))),
    "text": (TensorSpec("input_ids", "INT64", (TOKENS,)), TensorSpec("attention_mask", "INT64", (TOKENS,))),
}

ALL_READY: tuple[TensorSpec, ...] = tuple(spec for m in MODALITIES for spec in READY[m])

#: Which release answers, as JSON: `cmt_pipeline.release_info.ReleaseStamp`.
RELEASE = TensorSpec("release", "BYTES", (ITEM,))

#: What a picture's face is to its answer, as JSON: `cmt_pipeline.face_note.FaceNote`; empty where nobody looked.
FACE = TensorSpec("face", "BYTES", (ITEM,))

ABSENT_FEATURES = TensorSpec("absent_features", "FP32", (ABSENT, MODEL))
ABSENT_MASK = TensorSpec("absent_mask", "INT64", (ABSENT,))


def features(modality: Modality) -> tuple[TensorSpec, TensorSpec]:
    """`{modality}_features` [batch, tokens, width] and `{modality}_mask` [batch, tokens] (1 = real, 0 = padding)."""
    axis = FEATURE_AXIS[modality]
    return (
        TensorSpec(f"{modality}_features", "FP32", (axis, MODEL)),
        TensorSpec(f"{modality}_mask", "INT64", (axis,)),
    )


#: Of pictures that came as files: `preprocess` says which of them count, for it has looked for the face.
IMAGE_MASK = features("image")[1]

ANSWER: tuple[TensorSpec, ...] = (
    TensorSpec("logits", "FP32", (LABELS,)),
    TensorSpec("probabilities", "FP32", (LABELS,)),
    TensorSpec("valence_arousal", "FP32", (Axis("valence_arousal", (2,)),)),
    TensorSpec("attention", "FP32", (Axis("modalities", (3,)),)),
)

FUSE = Stage(
    name="fuse",
    kind="fuse",
    modality=None,
    inputs=tuple(spec for m in MODALITIES for spec in features(m)),
    outputs=ANSWER,
)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("preprocess", "preprocess", None, tuple(RAW.values()), (*ALL_READY, IMAGE_MASK, FACE, RELEASE)),
        Stage("check", "check", None, ALL_READY, (*ALL_READY, RELEASE)),
        *(
            Stage(
                f"encode_{m}",
                "encode",
                m,
                READY[m],
                (*features(m), ABSENT_FEATURES, ABSENT_MASK),
            )
            for m in MODALITIES
        ),
        FUSE,
    )
}


def sized(stage: Stage, sizes: Sizes) -> Stage:
    """The stage with the sizes of a release's features where it has none yet; `fuse` also takes a stand-in's length."""
    axes = sizes.axes(absent=stage.kind == "fuse")

    def filled(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(spec, axes=tuple(a if a.sizes else axes.get(a.name, a) for a in spec.axes)) for spec in specs
        )

    return replace(stage, inputs=filled(stage.inputs), outputs=filled(stage.outputs))


COMPILED_STAGES: tuple[Stage, ...] = tuple(stage for stage in STAGES.values() if stage.compiled)
