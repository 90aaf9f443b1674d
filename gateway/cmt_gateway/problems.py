"""What a caller is told instead of an answer: problem+json (RFC 9457), with the field and code of our own errors."""

from __future__ import annotations

import http
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from cmt_client.errors import (
    DeadlineExceeded,
    EmotionError,
    Overloaded,
    PermissionDenied,
    ServerUnavailable,
    UnknownPipeline,
)
from cmt_pipeline.errors import InvalidInput

MEDIA_TYPE = "application/problem+json"
#: Codes of the service's faults; others refuse what was sent, who sent it, or more than can be done.
FAULTS = ("internal", "inference", "denied", "unavailable", "not_ready")
#: Code of an InvalidInput -> status; 422 for all others.
STATUS = {"too_large": 413, "not_allowed": 403}


class Problem(BaseModel):
    """RFC 9457. code: for programs, the same for ever; field: the part of the request that is at fault."""

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What was got, what was expected, how to mend it.")
    code: str
    field: str | None = None
    retry_after_s: float | None = None
    request_id: str | None = None


class Refused(Exception):
    """A request that is answered by a problem. Raise it anywhere behind the door."""

    def __init__(
        self, status: int, code: str, detail: str, *, field: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.field, self.retry_after_s = field, retry_after_s

    def problem(self, request_id: str | None) -> Problem:
        return Problem(
            title=http.HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            code=self.code,
            field=self.field,
            retry_after_s=self.retry_after_s,
            request_id=request_id,
        )

    def response(self, request_id: str | None, headers: Mapping[str, str] | None = None) -> Response:
        """retry_after_s is said as a header too, in whole seconds."""
        more = dict(headers or {})
        if self.retry_after_s is not None:
            more["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == http.HTTPStatus.UNAUTHORIZED:
            more["WWW-Authenticate"] = "Bearer"
        return Response(
            self.problem(request_id).model_dump_json(exclude_none=True), self.status, more, media_type=MEDIA_TYPE
        )


def refused(error: Exception) -> Refused:
    """The refusal for an error of a client or of ours: who caused it is told what to mend, others little."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InvalidInput):
        return Refused(STATUS.get(error.code, 422), error.code, error.message, field=error.field)
    if isinstance(error, Overloaded):
        told = "the service has more to do than it can; ask again later"
        return Refused(503, error.code, told, retry_after_s=error.retry_after_s)
    if isinstance(error, DeadlineExceeded):
        return Refused(504, "deadline", "no answer within the time given; give more, or ask for less at once")
    if isinstance(error, UnknownPipeline):
        return Refused(503, "not_ready", "the service isn't ready for these modalities", retry_after_s=1.0)
    if isinstance(error, ServerUnavailable):
        return Refused(503, "unavailable", "the service behind can't be reached; ask again later", retry_after_s=1.0)
    if isinstance(error, PermissionDenied):
        return Refused(502, "denied", "the service behind refuses this gateway: its operator has to look")
    code = "inference" if isinstance(error, EmotionError) else "internal"
    return Refused(500, code, "the service failed on this request; its log says more under the request id")


#: For the OpenAPI page: every refusal that an endpoint may give.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "model": Problem,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "description": what,
    }
    for status, what in {
        400: "The body isn't what its content type says.",
        401: "No key, or nobody's.",
        403: "A modality that this deployment's context doesn't allow.",
        408: "The body came too slowly.",
        413: "Larger than the service takes.",
        415: "Neither multipart/form-data nor application/json.",
        422: "A file or a text that isn't accepted; `field` and `code` say which and why.",
        429: "More than this caller's share.",
        500: "The service failed.",
        502: "Triton refuses this gateway.",
        503: "Overloaded, draining or not ready; `retry_after_s` says when to ask again.",
        504: "No answer within the deadline.",
    }.items()
}
