"""Emotion: the typed answer, and how it is read from output tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_client.errors import InferenceFailed
from cmt_client.operations import InferAnswer, ModelDescription
from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.pipelines import pipeline_of
from cmt_pipeline.release_info import ReleaseStamp
from cmt_pipeline.stages import ANSWER, FACE, RELEASE


@dataclass(frozen=True)
class Emotion:
    """What one item expresses.

    label: the likeliest, with its probability; probabilities and logits: by label, in the order of the label
    set; valence, arousal: in [-1, 1], None where the release reads none; modalities: what the answer was made
    from; attention: how much each of them weighed, together 1; release and digest: its number and content
    address; label_set, preset, engine and precision are that release's; trained: False when its weights are
    random, so that the answer means nothing; request_id: as sent, to find it in the server's log and trace; face: the
    one in the picture, None where the release looks for none.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    valence: float | None
    arousal: float | None
    modalities: tuple[Modality, ...]
    attention: dict[str, float]
    logits: dict[str, float]
    label_set: str
    release: int
    digest: str
    preset: str
    engine: str
    precision: str
    trained: bool
    request_id: str = ""
    face: FaceNote | None = None

    def to_json(self) -> dict[str, Any]:
        """The same, of types that `json.dumps` takes."""
        return {**asdict(self), "modalities": list(self.modalities)}


def release_of(description: ModelDescription) -> ReleaseStamp | None:
    """The release that a pipeline's configuration names. Raises InferenceFailed if it can't be read."""
    try:
        return ReleaseStamp.from_parameters(description.parameters)
    except ValueError as error:
        raise InferenceFailed(f"{description.name} describes its release in an unknown way ({error})") from error


def emotions_from(answer: InferAnswer) -> list[Emotion]:
    """One Emotion for each item of the batch. Raises InferenceFailed if the tensors aren't an answer's."""
    missing = [spec.name for spec in pipeline_of(answer.model).outputs if spec.name not in answer.outputs]
    if missing:
        raise InferenceFailed(f"{answer.model} answered without {', '.join(missing)}")
    info = _release_of_answer(answer)
    logits, probabilities, valence_arousal, attention = (
        np.asarray(answer.outputs[spec.name], np.float64) for spec in ANSWER
    )
    shapes = [array.shape for array in (logits, probabilities, valence_arousal, attention)]
    batch = shapes[0][:1]
    if shapes != [(*batch, width) for width in (len(info.labels), len(info.labels), 2, len(MODALITIES))]:
        raise InferenceFailed(f"{answer.model} answered with shapes {shapes}; expected {len(info.labels)} labels")
    if not all(np.isfinite(array).all() for array in (logits, probabilities, valence_arousal, attention)):
        raise InferenceFailed(
            f"{answer.model} answered with NaN or infinity (release {info.release}, {info.precision})"
        )
    rows = zip(logits, probabilities, valence_arousal, attention, strict=True)
    modalities, made = pipeline_of(answer.model).modalities, []
    for row, face in zip(rows, _faces_of(answer, *batch), strict=True):
        present = tuple(m for m in modalities if m != "image" or face is None or face.used != "absent")
        made.append(replace(_emotion(present, info, *row), request_id=answer.request_id, face=face))
    return made


def _faces_of(answer: InferAnswer, batch: int) -> list[FaceNote | None]:
    if FACE.name not in answer.outputs:
        return [None] * batch
    try:
        return [FaceNote.from_json(note) for note in answer.outputs[FACE.name].ravel().tolist()]
    except ValueError as error:
        raise InferenceFailed(f"{answer.model} describes a face in an unknown way ({error})") from error


def _release_of_answer(answer: InferAnswer) -> ReleaseStamp:
    """Who made it: one release, whatever the batch."""
    said = set(answer.outputs[RELEASE.name].ravel().tolist())
    if len(said) != 1:
        raise InferenceFailed(f"{answer.model} answered from {len(said)} releases at once")
    try:
        return ReleaseStamp.from_json(said.pop())
    except ValueError as error:
        raise InferenceFailed(
            f"{answer.model} doesn't say which release answered ({error}); is it served by `cmt serve`?"
        ) from error


def _emotion(
    modalities: tuple[Modality, ...],
    info: ReleaseStamp,
    logits: NDArray[np.float64],  # [labels]
    probabilities: NDArray[np.float64],  # [labels]
    valence_arousal: NDArray[np.float64],  # [2]
    attention: NDArray[np.float64],  # [3], in the order of MODALITIES
) -> Emotion:
    best = int(probabilities.argmax())
    return Emotion(
        label=info.labels[best],
        probability=float(probabilities[best]),
        probabilities=dict(zip(info.labels, probabilities.tolist(), strict=True)),
        valence=float(valence_arousal[0]) if info.valence_arousal else None,
        arousal=float(valence_arousal[1]) if info.valence_arousal else None,
        modalities=modalities,
        attention={m: float(attention[MODALITIES.index(m)]) for m in modalities},
        logits=dict(zip(info.labels, logits.tolist(), strict=True)),
        label_set=info.label_set,
        release=info.release,
        digest=info.digest,
        preset=info.preset,
        engine=info.engine,
        precision=info.precision,
        trained=info.trained,
    )
