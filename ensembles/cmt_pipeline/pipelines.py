"""The pipelines: one ensemble for each subset of modalities and each entrance.

`emotion` takes all three, a subset is named for what it takes (`emotion_image_text`). The raw entrance takes files as
bytes; the `_tensors` entrance takes what `preprocess` makes of them, for clients that preprocess themselves. While a
release is on trial, its pipelines stand beside the live ones under names of their own (`candidate_emotion`).

The version of a pipeline is that of its tensors, 1, whatever release answers: a client may pin it for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality, ordered
from cmt_pipeline.stages import (
    ABSENT_FEATURES,
    ABSENT_MASK,
    FACE,
    FUSE,
    IMAGE_MASK,
    RAW,
    READY,
    RELEASE,
    STAGES,
    Stage,
)
from cmt_pipeline.tensors import TensorSpec

Entrance = Literal["raw", "tensors"]
ENTRANCES: tuple[Entrance, ...] = ("raw", "tensors")

CANDIDATE_PREFIX = "candidate_"
PIPELINE_VERSION = 1


@dataclass(frozen=True)
class Step:
    """A stage within a pipeline: stage tensor name -> pipeline tensor name, for inputs and outputs."""

    stage: Stage
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Pipeline:
    """One Triton ensemble."""

    modalities: tuple[Modality, ...]
    entrance: Entrance

    @property
    def name(self) -> str:
        return pipeline_name(self.modalities, self.entrance)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        if self.entrance == "raw":
            return tuple(RAW[m] for m in self.modalities)
        return tuple(spec for m in self.modalities for spec in READY[m])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (*FUSE.outputs, RELEASE, *((FACE,) if self.looks else ()))

    @property
    def looks(self) -> bool:
        """Whether `preprocess` sees a picture, and so may look for the face in it."""
        return self.entrance == "raw" and "image" in self.modalities

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self._first_step(), *(self._encode_step(m) for m in self.modalities), self._fuse_step())

    def _first_step(self) -> Step:
        """The stage that may refuse; it runs alone, before the encoders start."""
        ready = [spec for m in self.modalities for spec in READY[m]]
        if self.entrance == "raw":
            seen = (IMAGE_MASK, FACE) if self.looks else ()
            return Step(STAGES["preprocess"], _identity(self.inputs), _identity([*ready, *seen, RELEASE]))
        checked = {spec.name: _checked(spec.name) for spec in ready}
        return Step(STAGES["check"], _identity(self.inputs), checked | _identity([RELEASE]))

    def _encode_step(self, modality: Modality) -> Step:
        stage = STAGES[f"encode_{modality}"]
        wanted = {f"{modality}_features"}
        if modality != "image" or not self.looks:
            wanted |= {f"{modality}_mask"}
        if modality == self.modalities[0] and len(self.modalities) < len(MODALITIES):
            wanted |= {ABSENT_FEATURES.name, ABSENT_MASK.name}
        inputs = _identity(stage.inputs)
        if self.entrance == "tensors":
            inputs = {name: _checked(name) for name in inputs}
        return Step(stage, inputs, _identity(spec for spec in stage.outputs if spec.name in wanted))

    def _fuse_step(self) -> Step:
        inputs = {}
        for m in MODALITIES:
            present = m in self.modalities
            inputs[f"{m}_features"] = f"{m}_features" if present else ABSENT_FEATURES.name
            inputs[f"{m}_mask"] = f"{m}_mask" if present else ABSENT_MASK.name
        return Step(FUSE, inputs, _identity(FUSE.outputs))


def pipeline_name(modalities: Iterable[str], entrance: Entrance = "raw") -> str:
    """`emotion`, `emotion_image_text`, `emotion_audio_tensors`, … ValueError for no or unknown modalities."""
    subset = ordered(modalities)
    parts = ["emotion"]
    if subset != MODALITIES:
        parts += subset
    if entrance == "tensors":
        parts.append("tensors")
    return "_".join(parts)


def _identity(specs: Iterable[TensorSpec]) -> dict[str, str]:
    return {spec.name: spec.name for spec in specs}


def _checked(name: str) -> str:
    """Within an ensemble every tensor has a name of its own."""
    return f"checked_{name}"


PIPELINES: dict[str, Pipeline] = {
    pipeline.name: pipeline for pipeline in (Pipeline(s, e) for e in ENTRANCES for s in SUBSETS)
}


def candidate_of(name: str) -> str:
    """The name of a pipeline of the release on trial."""
    return f"{CANDIDATE_PREFIX}{name}"


def pipeline_of(name: str) -> Pipeline:
    """The pipeline that a model is, live or on trial. KeyError for another model."""
    return PIPELINES[name.removeprefix(CANDIDATE_PREFIX)]
