"""A request's body -> what a client sends: forms with files, or JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cmt_client.requests import Item
from cmt_gateway.problems import Refused

FIELDS = ("image", "audio", "text", "video")
MOST_ITEMS = 32  # of a batch
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"

#: For the OpenAPI page.
_TOLD = {
    "image": "A face: JPEG, PNG, WebP, HEIC, …, one picture.",
    "audio": "A voice: WAV, FLAC, MP3, Ogg, M4A, WebM, …",
    "text": "What was said, in UTF-8.",
    "video": "A film with picture and sound, MP4 or WebM, in place of image and audio.",
}


def _schema(fields: Iterable[str], file: dict[str, str]) -> dict[str, Any]:
    """Of an object of some of the fields. file: how those that aren't text are told to be files."""
    properties = {
        name: {"type": "string", "description": _TOLD[name]} | ({} if name == "text" else file) for name in fields
    }
    return {"type": "object", "additionalProperties": False, "minProperties": 1, "properties": properties}


def _body(fields: Iterable[str], example: dict[str, Any]) -> dict[str, Any]:
    as_json = {"schema": _schema(fields, {"contentEncoding": "base64", "format": "byte"}) | example}
    as_form = {"schema": _schema(fields, {"format": "binary"})}
    return {"requestBody": {"required": True, "content": {JSON_TYPE: as_json, FORM_TYPE: as_form}}}


BODY = _body(FIELDS, {"example": {"text": "I can't believe you came!"}})
PICTURE_BODY = _body(("image",), {})
ITEM_SCHEMA = BODY["requestBody"]["content"][JSON_TYPE]["schema"]
BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON_TYPE: {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["items"],
                    "properties": {
                        "items": {"type": "array", "minItems": 1, "maxItems": MOST_ITEMS, "items": ITEM_SCHEMA}
                    },
                }
            }
        },
    }
}


async def fields_of(headers: Headers, body: bytes) -> dict[str, bytes | str]:
    """The fields of one moment, by name. Raises Refused, which names the field."""
    kind = content_type_of(headers)
    if kind == JSON_TYPE:
        return await asyncio.to_thread(lambda: json_fields(parsed(body)))  # megabytes of base64
    if kind == FORM_TYPE:
        return await _form_fields(headers, body)
    raise Refused(415, "content_type", f"got {kind or 'no content type'}; expected {FORM_TYPE} or {JSON_TYPE}")


def content_type_of(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def parsed(body: bytes) -> Any:
    """JSON. Raises Refused."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "json", "the body isn't JSON; expected an object", field="body") from None


def items_in(given: Any) -> list[dict[str, bytes | str] | Refused]:
    """Those of a batch; what is wrong with one is in its place. Raises Refused for what isn't a batch."""
    items = given.get("items") if isinstance(given, Mapping) and set(given) == {"items"} else None
    if not isinstance(items, list) or not 1 <= len(items) <= MOST_ITEMS:
        raise Refused(
            422, "batch", f"expected an object with `items` alone, a list of 1 to {MOST_ITEMS}", field="items"
        )
    return [_item_or_refusal(item) for item in items]


def json_fields(given: Any) -> dict[str, bytes | str]:
    """Of one object: text as it is, the others from base64, with or without `data:…;base64,` before it."""
    if not isinstance(given, Mapping):
        raise Refused(
            422, "type", f"got {type(given).__name__}; expected an object of {', '.join(FIELDS)}", field="body"
        )
    found: dict[str, bytes | str] = {}
    for name, value in given.items():
        _check_name(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise Refused(422, "type", f"got {type(value).__name__}; expected a string", field=name)
        found[name] = value if name == "text" else _from_base64(name, value)
    return _some(found)


def item_of(fields: Mapping[str, bytes | str]) -> Item:
    """Without a film."""
    if "video" in fields:
        raise Refused(422, "unexpected", "a film has a request of its own; expected image, audio, text", field="video")
    return {name: fields[name] for name in ("image", "audio", "text") if name in fields}  # type: ignore[return-value]


def _item_or_refusal(item: Any) -> dict[str, bytes | str] | Refused:
    try:
        return json_fields(item)
    except Refused as error:
        return error


async def _form_fields(headers: Headers, body: bytes) -> dict[str, bytes | str]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(headers, whole(), max_files=len(FIELDS), max_fields=len(FIELDS)).parse()
    except (MultiPartException, MultipartParseError, KeyError, ValueError) as error:
        told = f"the body isn't a form as its content type says ({error or type(error).__name__})"
        raise Refused(400, "form", told, field="body") from None
    found: dict[str, bytes | str] = {}
    for name, value in form.multi_items():
        _check_name(name)
        if name in found:
            raise Refused(422, "repeated", "got the field twice; expected it once", field=name)
        data = await value.read() if isinstance(value, UploadFile) else value
        if name == "text" and isinstance(data, bytes):
            data = _text(data)
        elif name != "text" and isinstance(data, str):
            told = "got a value; expected a file, with a filename in its Content-Disposition"
            raise Refused(422, "type", told, field=name)
        found[name] = data
    return _some(found)


class _InMemory(MultiPartParser):
    """Nothing that a person sends reaches a disk; the body as a whole is bounded."""

    spool_max_size = 1 << 40


def _check_name(name: str) -> None:
    if name not in FIELDS:
        raise Refused(422, "unknown", f"no such field; expected {', '.join(FIELDS)}", field=str(name)[:40])


def _some(found: dict[str, bytes | str]) -> dict[str, bytes | str]:
    if not found:
        raise Refused(422, "missing", f"got no field; expected one or more of {', '.join(FIELDS)}", field="body")
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(422, "not_decodable", "got bytes that aren't UTF-8; expected text", field="text") from None


def _from_base64(name: str, value: str) -> bytes:
    head, separator, _ = value[:200].partition(";base64,")
    if separator and head.startswith("data:"):
        value = value[len(head) + len(separator) :]
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise Refused(422, "base64", "got no base64 (RFC 4648); expected a file encoded by it", field=name) from None
