"""Every face in a picture: the most prominent is read with the picture, each other is cut out and asked for by itself.

The server finds them (`Emotion.face`); here they are cut out, which needs Pillow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from cmt_client.arrays import ppm_from_array
from cmt_client.errors import InvalidInput, own_input_error
from cmt_client.requests import Item
from cmt_client.result import Emotion
from cmt_pipeline.errors import InvalidInput as PipelineInvalidInput
from cmt_pipeline.face_note import Box
from cmt_pipeline.faces import Face, cut_out
from cmt_pipeline.image import DecodingRoom, decode_to_look
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits

#: The same picture has been decoded by the server; here many may come at once.
_ROOM = DecodingRoom(DEFAULT_LIMITS.max_image_pixels)


def items_of_others(asked: Item, found: Emotion, limits: Limits) -> list[Item]:
    """A request for each face beside the one that was read. asked: with the picture as a file's bytes."""
    others = found.face.others if found.face else ()
    if not others:
        return []
    return [{"image": portrait} for portrait in _portraits(cast(bytes, asked["image"]), others, limits)]


def emotions_of_faces(first: Emotion, others: Sequence[Emotion]) -> list[Emotion]:
    """All of them, each with its place in the picture."""
    if first.face is None:
        return [first]
    boxes = first.face.others
    alone = replace(first, face=replace(first.face, others=()))
    return [alone, *(_placed(emotion, box) for emotion, box in zip(others, boxes, strict=True))]


def _placed(emotion: Emotion, box: Box) -> Emotion:
    return replace(emotion, face=replace(emotion.face, box=box, others=())) if emotion.face else emotion


def _portraits(picture: bytes, boxes: Sequence[Box], limits: Limits) -> Iterator[bytes]:
    """Netpbm files of the squares around boxes, not turned: the server looks for the face again."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        told = "got a picture of several faces, and Pillow isn't installed: pip install 'cmt-triton[preprocess]'"
        raise InvalidInput("image", "not_decodable", told) from None
    try:
        image, scale = decode_to_look(picture, limits, _ROOM)
    except PipelineInvalidInput as error:
        raise own_input_error(error) from None
    for box in boxes:
        left, top, right, bottom = (side / scale for side in box)
        yield ppm_from_array(np.asarray(cut_out(image, Face((left, top, right, bottom), 0.0, 1.0))), limits)
