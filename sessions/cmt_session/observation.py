"""What a session is told: one answer of a release, or that there was none, and where it lies on the media's time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.labels import checked_labels
from cmt_pipeline.modality import MODALITIES, Modality, ordered
from cmt_session.errors import InvalidEvent
from cmt_session.fields import Fields, is_number, object_of, shown

MAX_TIME_S = 1e7  # a session of four months
MAX_LABELS = 64
MAX_DIGEST = 128  # characters
MAX_BYTES = 32_768  # of an observation as JSON
SUM_TOLERANCE = 1e-3  # probabilities of a half-precision engine

FIELDS = ("start_s", "end_s", "modalities", "probabilities", "valence", "arousal", "quality", "digest", "trained")


class Answer(Protocol):
    """An answer of a release, such as `cmt_client.Emotion`."""

    @property
    def probabilities(self) -> Mapping[str, float]: ...
    @property
    def modalities(self) -> Sequence[Modality]: ...
    @property
    def valence(self) -> float | None: ...
    @property
    def arousal(self) -> float | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def trained(self) -> bool: ...
    @property
    def face(self) -> FaceNote | None: ...


@dataclass(frozen=True)
class Observation:
    """One event of a session.

    start_s, end_s: the stretch of media that it is about, in seconds since the session began; the same for a single
    picture. modalities: what the answer was made from; none where nothing was there to be read (camera off, silence).
    probabilities: calibrated, by label, none where nothing was read. quality: of each input, from 0 to 1, where
    somebody measured it. digest: of the release that answered. trained: False where its weights are random.
    Raises InvalidEvent.
    """

    start_s: float
    end_s: float
    modalities: tuple[Modality, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    valence: float | None = None
    arousal: float | None = None
    quality: Mapping[Modality, float] = field(default_factory=dict)
    digest: str = ""
    trained: bool = True

    def __post_init__(self) -> None:
        times = (self.start_s, self.end_s)
        if not all(is_number(t) and 0 <= t <= MAX_TIME_S for t in times) or self.start_s > self.end_s:
            raise InvalidEvent(f"start_s, end_s: got {shown(times)}; expected 0 <= start_s <= end_s <= {MAX_TIME_S:g}")
        if bool(self.probabilities) != bool(self.modalities):
            raise InvalidEvent(
                f"got {len(self.probabilities)} probabilities of the modalities {shown(self.modalities)}; "
                "expected both, or neither where nothing was there"
            )
        for name in ("valence", "arousal"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and -1 <= value <= 1):
                raise InvalidEvent(f"{name}: got {shown(value)}; expected a number from -1 to 1, or None")
            object.__setattr__(self, name, None if value is None else float(value))
        object.__setattr__(self, "start_s", float(self.start_s))
        object.__setattr__(self, "end_s", float(self.end_s))
        object.__setattr__(self, "quality", _checked_quality(self.quality))
        if self.probabilities:
            object.__setattr__(self, "modalities", _modalities(self.modalities))
            object.__setattr__(self, "probabilities", _normalised(self.probabilities))

    @classmethod
    def of(
        cls,
        answer: Answer,
        end_s: float,
        start_s: float | None = None,
        quality: Mapping[Modality, float] | None = None,
    ) -> Observation:
        """An answer of the client. quality: as measured; of a picture in which a face was looked for, the face's score
        by default, and 0 where none was found."""
        face = answer.face
        seen: dict[Modality, float] = {}
        if face is not None and "image" in answer.modalities:
            seen["image"] = face.score if face.used == "face" else 0.0
        return cls(
            end_s if start_s is None else start_s,
            end_s,
            tuple(answer.modalities),
            answer.probabilities,
            answer.valence,
            answer.arousal,
            {**seen, **(quality or {})},
            answer.digest,
            answer.trained,
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; without what is empty."""
        values = {**vars(self), "modalities": list(self.modalities)}
        if self.trained:
            del values["trained"]
        return {name: value for name, value in values.items() if value not in (None, "", {}, [])}

    @classmethod
    def from_json(cls, value: str | bytes | Mapping[str, Any], where: str = "event") -> Observation:
        """Raises InvalidEvent for anything else than an observation."""
        values = object_of(value, MAX_BYTES, InvalidEvent) if isinstance(value, str | bytes) else value
        fields = Fields(values, where, InvalidEvent, FIELDS)
        end_s = fields.number("end_s", 0, MAX_TIME_S)
        return cls(
            fields.number("start_s", 0, MAX_TIME_S) if "start_s" in fields else end_s,
            end_s,
            _modalities(fields.texts("modalities", 3, 5)) if fields.raw_or("modalities", list, []) else (),
            fields.raw_or("probabilities", dict, {}),
            fields.maybe("valence", -1, 1),
            fields.maybe("arousal", -1, 1),
            fields.raw_or("quality", dict, {}),
            fields.text("digest", MAX_DIGEST) if "digest" in fields else "",
            fields.raw("trained", bool, "true or false") if "trained" in fields else True,
        )


def _modalities(names: Sequence[str]) -> tuple[Modality, ...]:
    try:
        return ordered(names)
    except (ValueError, TypeError) as error:
        raise InvalidEvent(str(error)) from None


def _checked_quality(quality: Mapping[Modality, float]) -> dict[Modality, float]:
    for modality, value in quality.items():
        if modality not in MODALITIES or not is_number(value) or not 0 <= value <= 1:
            expected = f"a number from 0 to 1 for {', '.join(MODALITIES)}"
            raise InvalidEvent(f"quality: got {shown(modality)}: {shown(value)}; expected {expected}")
    return {modality: float(value) for modality, value in quality.items()}


def _normalised(probabilities: Mapping[str, float]) -> dict[str, float]:
    try:
        labels = checked_labels(list(probabilities))
    except ValueError as error:
        raise InvalidEvent(str(error)) from None
    if len(labels) > MAX_LABELS:
        raise InvalidEvent(f"probabilities: got {len(labels)} labels; expected at most {MAX_LABELS}")
    values = [probabilities[label] for label in labels]
    if not all(is_number(p) and 0 <= p <= 1 + SUM_TOLERANCE for p in values):
        raise InvalidEvent(f"probabilities: got {shown(values)}; expected numbers from 0 to 1")
    total = math.fsum(values)
    if abs(total - 1) > SUM_TOLERANCE:
        raise InvalidEvent(f"probabilities: got numbers that are together {total:g}; expected 1")
    return {label: float(p) / total for label, p in zip(labels, values, strict=True)}
