"""What an answer says of the faces in its picture: one JSON object an item, in the tensor `face`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

#: What was looked at: the face alone; the whole picture, since there was none; nothing, for the same reason.
Used = Literal["face", "whole", "absent"]
#: left, top, right, bottom in pixels of the upright picture as it was sent.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class FaceNote:
    """box: where the face is; angle_deg: how far it is turned clockwise; score: from 0 to 1, without a face 0;
    others: where the picture's other faces are, the most prominent first."""

    used: Used
    box: Box | None = None
    angle_deg: float = 0.0
    score: float = 0.0
    others: tuple[Box, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> FaceNote | None:
        """None of an empty text: nobody looked for a face. ValueError for anything else than a note."""
        if not text:
            return None
        try:
            values = json.loads(text)
            if values["used"] not in get_args(Used):
                raise ValueError(f"got used {values['used']!r}; expected one of {', '.join(get_args(Used))}")
            box = None if values["box"] is None else _box(values["box"])
            others = tuple(_box(other) for other in values.get("others", ()))  # releases of before name none
            return cls(values["used"], box, float(values["angle_deg"]), float(values["score"]), others)
        except (KeyError, TypeError) as error:
            raise ValueError(f"got a note of a face with other fields ({error})") from None


def _box(values: Any) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
