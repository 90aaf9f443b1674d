"""What an answer says of the face in its picture: one JSON object an item, in the tensor `face`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

#: What was looked at: the face alone; the whole picture, since there was none; nothing, for the same reason.
Used = Literal["face", "whole", "absent"]


@dataclass(frozen=True)
class FaceNote:
    """box: left, top, right, bottom in pixels of the upright picture as it was sent; angle_deg: how far the face is
    turned clockwise; score: from 0 to 1. Without a face the score is 0."""

    used: Used
    box: tuple[float, float, float, float] | None = None
    angle_deg: float = 0.0
    score: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> FaceNote | None:
        """None of an empty text: nobody looked for a face. ValueError for anything else than a note."""
        if not text:
            return None
        try:
            values = json.loads(text)
            box = values["box"]
            sides = None if box is None else tuple(float(value) for value in box)
            if values["used"] not in get_args(Used) or (sides is not None and len(sides) != 4):
                raise ValueError(f"got used {values['used']!r} and box {box!r}")
            return cls(values["used"], sides, float(values["angle_deg"]), float(values["score"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"got a note of a face with other fields ({error})") from None
