"""What a caller gets, for the OpenAPI page and for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from cmt_client.result import Emotion
from cmt_client.windows import LongEmotion, WindowEmotion
from cmt_gateway.problems import Problem
from cmt_pipeline.face_note import Box


class Face(BaseModel):
    """The face that was read. box: left, top, right, bottom in pixels of the upright picture; others: of its other
    faces, which `/v1/faces` reads too."""

    used: str
    box: Box | None = None
    angle_deg: float = 0.0
    score: float = 0.0
    others: tuple[Box, ...] = ()


class Reading(BaseModel):
    """What one moment expresses."""

    label: str = Field(description="The likeliest.")
    probability: float = Field(description="Of the label.")
    probabilities: dict[str, float]
    valence: float | None = Field(description="-1 to 1; null where the release reads none.")
    arousal: float | None = Field(description="-1 to 1; null where the release reads none.")
    modalities: list[str] = Field(description="What the answer was made from.")
    attention: dict[str, float] = Field(description="How much each of them weighed; 1 together.")
    face: Face | None = None

    @classmethod
    def fields_of(cls, emotion: Emotion) -> dict[str, Any]:
        face = None if emotion.face is None else Face(**asdict(emotion.face))
        own = {name: getattr(emotion, name) for name in Reading.model_fields if name != "face"}
        return {**own, "modalities": list(emotion.modalities), "face": face}


class Window(Reading):
    """What a stretch of a film or a sound expresses."""

    start_s: float
    end_s: float

    @classmethod
    def of(cls, window: WindowEmotion) -> Window:
        return cls(start_s=window.start_s, end_s=window.end_s, **cls.fields_of(window.emotion))


class Answer(Reading):
    """One answer, and who made it. windows: of a film or a long sound, in order."""

    label_set: str
    release: int
    digest: str = Field(description="The content address of the release.")
    trained: bool = Field(description="false: random weights, the answer means nothing.")
    request_id: str
    windows: list[Window] | None = None

    @classmethod
    def of(cls, emotion: Emotion, request_id: str, windows: list[Window] | None = None) -> Answer:
        return cls(
            **cls.fields_of(emotion),
            label_set=emotion.label_set,
            release=emotion.release,
            digest=emotion.digest,
            trained=emotion.trained,
            request_id=request_id,
            windows=windows,
        )

    @classmethod
    def of_long(cls, found: LongEmotion, request_id: str) -> Answer:
        return cls.of(found.whole, request_id, [Window.of(window) for window in found.windows] or None)


class Faces(BaseModel):
    """The most prominent first; each says in `face.box` where it is."""

    faces: list[Answer]


class Settled(BaseModel):
    """Of one item of a batch: an answer, or what is wrong."""

    answer: Answer | None = None
    problem: Problem | None = None


class Batch(BaseModel):
    """In the order of the items."""

    items: list[Settled]
