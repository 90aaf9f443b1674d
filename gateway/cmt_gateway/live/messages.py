"""What a client sends over the socket. Version 1.

Text messages are JSON objects with a `type`; binary ones are media: a byte that says which kind, four bytes with the
media time in milliseconds (big endian, where the piece begins), and the piece.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cmt_gateway.problems import Refused
from cmt_session.session import MAX_STATE_BYTES

PROTOCOL = "cmt.live.v1"
KEY_PROTOCOL = "cmt.key."  # and the key: browsers can't send headers, and an address ends up in logs
HEAD = struct.Struct(">BI")
MediaKind = Literal["image", "pcm", "opus"]
KINDS: dict[int, MediaKind] = {1: "image", 2: "pcm", 3: "opus"}
MAX_TIME_MS = 2**32 - 1
MAX_BYTES: dict[MediaKind, int] = {"image": 2_000_000, "pcm": 64_000, "opus": 4_000}
MAX_TEXT_BYTES = 2 * MAX_STATE_BYTES  # a state is JSON within JSON

Milliseconds = Annotated[int, Field(ge=0, le=MAX_TIME_MS)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Begin(_Message):
    """The first message. policy: of those that the deployment has; state: of a session that goes on."""

    type: Literal["session.begin"]
    policy: str | None = Field(default=None, max_length=64)
    state: str | None = Field(default=None, max_length=MAX_STATE_BYTES)


class Words(_Message):
    """What is said, as far as it is known: of the turn that is being spoken, or, when nobody speaks, a turn of its own
    once it is final."""

    type: Literal["text"]
    text: str = Field(max_length=8_192)
    time_ms: Milliseconds
    final: bool = True


class EndTurn(_Message):
    """The turn is over: a button was let go."""

    type: Literal["turn.end"]


class End(_Message):
    """Nothing more comes; what is being answered still is."""

    type: Literal["session.end"]


_ANY: TypeAdapter[Begin | Words | EndTurn | End] = TypeAdapter(
    Annotated[Begin | Words | EndTurn | End, Field(discriminator="type")]
)


@dataclass(frozen=True)
class Media:
    kind: MediaKind
    time_s: float
    data: bytes


def message_of(text: str) -> Begin | Words | EndTurn | End:
    """Raises Refused."""
    if len(text) > MAX_TEXT_BYTES:
        raise Refused(413, "too_large", f"got a message of {len(text)} characters; at most {MAX_TEXT_BYTES}")
    try:
        return _ANY.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise Refused(422, "message", first["msg"], field=where[:64]) from None


def media_of(data: bytes) -> Media:
    """Raises Refused."""
    if len(data) <= HEAD.size or data[0] not in KINDS:
        told = "expected a byte of 1 (JPEG), 2 (PCM) or 3 (Opus), four of the time in milliseconds, and the piece"
        raise Refused(422, "media", told, field="media")
    number, time_ms = HEAD.unpack_from(data)
    kind, piece = KINDS[number], data[HEAD.size :]
    if len(piece) > MAX_BYTES[kind]:
        raise Refused(413, "too_large", f"got {len(piece)} bytes; at most {MAX_BYTES[kind]} a message", field=kind)
    if kind == "pcm" and len(piece) % 2:
        raise Refused(422, "media", "got half a sample; expected 16-bit ones", field=kind)
    return Media(kind, time_ms / 1000, piece)
