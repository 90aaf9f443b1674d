"""What can go wrong, as a caller sees it, and the one seam where foreign errors become ours.

    EmotionError
    ├── InvalidInput          what you gave isn't accepted; also a ValueError; has `field`, `code`, `message`
    └── ServiceError          has `status`, the server's own code where it gave one
        ├── ServerUnavailable     nobody there, or the connection died; safe to try again
        │   └── Overloaded            too much waits there already; has `retry_after_s`
        ├── DeadlineExceeded      no answer within the time you gave
        ├── UnknownPipeline       the server has no such model, or it isn't ready
        ├── PermissionDenied      a restricted API without the right token
        ├── InferenceFailed       any other error of the server's, or something that isn't an answer
        └── ControlFailed         the server refused to load, unload or list models

The tree is httpx's habit: one base to catch everything, one branch for each thing that a caller does about
it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.utils import InferenceServerException

from cmt_pipeline import errors as pipeline_errors


class EmotionError(Exception):
    """Anything that a client of this package raises on purpose. request_id: of the request that met it, if one did."""

    request_id: str | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} [request id: {self.request_id}]" if self.request_id else text


class InvalidInput(pipeline_errors.InvalidInput, EmotionError):
    """Input that isn't accepted, whoever noticed: this client, a preprocessing stage or Triton itself."""


class ServiceError(EmotionError):
    """The input isn't at fault. status: the server's code (`StatusCode.INTERNAL`, `500`), else None."""

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServerUnavailable(ServiceError):
    """Nobody there, overloaded, or the connection died. Another try may work."""


class Overloaded(ServerUnavailable):
    """Refused at once, because it would have waited too long. retry_after_s: when another try may find room.

    code: `queue`, `deadline` (its own caller wouldn't have waited so long) or `memory`.
    """

    def __init__(
        self, message: str, status: str | None = None, retry_after_s: float = 0.1, code: str = "queue"
    ) -> None:
        super().__init__(message, status)
        self.retry_after_s = retry_after_s
        self.code = code


class DeadlineExceeded(ServiceError):
    """No answer within the time given. The server may still be working on it."""


class UnknownPipeline(ServiceError):
    """The server has no model of that name, or no version of it is ready."""


class PermissionDenied(ServiceError):
    """The server restricts this API: a token is missing or wrong."""


class InferenceFailed(ServiceError):
    """The server failed on a request that looks right, or what came back isn't an answer."""


class ControlFailed(ServiceError):
    """The server refused a model control request; its log says more."""


# Statuses of both protocols: gRPC's names, HTTP's numbers.
UNAVAILABLE = frozenset({"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED", "502", "503"})  # cancelled: by its exit
LATE = frozenset({"StatusCode.DEADLINE_EXCEEDED", "408", "504"})
DENIED = frozenset({"StatusCode.PERMISSION_DENIED", "StatusCode.UNAUTHENTICATED", "401", "403"})
INVALID = frozenset({"StatusCode.INVALID_ARGUMENT", "400"})

# Texts of Triton 2.51 that say more than its status: it answers UNAVAILABLE for a restricted protocol and a
# model that isn't ready, INVALID_ARGUMENT for the statistics of an unknown model, INTERNAL for a stage without process.
RESTRICTED = re.compile(r"is restricted, expecting header")
UNHEALTHY = re.compile(r"[Ss]tub process .*is not healthy")  # its process was killed and is being started again
QUEUE_FULL = re.compile(r"Exceeds maximum queue size")  # that of a stage before the fan-out
UNKNOWN_MODEL = re.compile(r"unknown model|is not at ready state|^requested model '.*' is not available")

#: What Triton says of tensors that don't fit a model: pattern (its group: the tensor) -> InvalidInput's code.
TENSOR_FAULTS = (
    (re.compile(r"unexpected shape for input '([^']+)'"), "shape"),
    (re.compile(r"elements for inference input '([^']+)'"), "shape"),
    (re.compile(r"byte size .*for input '([^']+)'"), "shape"),
    (re.compile(r"inference input '([^']+)' data-type"), "dtype"),
    (re.compile(r"missing required input\(s\) \['([^']+)'"), "missing"),
    (re.compile(r"unexpected inference input '([^']+)'"), "unexpected"),
    (re.compile(r"expected \d+ (inputs) but got"), "unexpected"),
    (re.compile(r"input '([^']+)' batch size does not match"), "batch"),
    (re.compile(r"(batch)-size must be <="), "too_large"),
)
REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")  # Triton's; ours stands at the end of every error
ADVICE = " NOTE: "  # Triton's hint to whoever wrote the model configuration
TRACEBACK = "\n\nAt:\n"  # the python backend's, after the message of an exception


def from_triton(
    error: BaseException, where: str, otherwise: type[ServiceError] = InferenceFailed
) -> EmotionError | None:
    """The error of ours for one that a transport met, or None for one that isn't the network's or the
    server's.

    where: the server's URL, for the message; otherwise: what a server's error is that no other class fits.
    """
    if isinstance(error, EmotionError):
        return error
    if isinstance(error, InferenceServerException):
        return _from_server(error.message() or "", error.status(), where, otherwise)
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not getattr(error, "errno", None):
        return DeadlineExceeded(f"{where} didn't answer in time")
    if isinstance(error, OSError) or _is(error, "aiohttp", "ClientError"):
        return ServerUnavailable(
            f"no connection to {where}: {str(error) or type(error).__name__}; is the server running?"
        )
    if _is(error, "rapidjson", "JSONDecodeError"):
        return otherwise(f"{where} answered with something that isn't Triton's JSON: {error}")
    return None


@contextmanager
def translated(where: str, otherwise: type[ServiceError] = InferenceFailed) -> Iterator[None]:
    """Raises foreign errors of its block as ours, with the foreign one as cause."""
    try:
        yield
    except Exception as error:
        ours = from_triton(error, where, otherwise)
        if ours is None or ours is error:
            raise
        raise ours from error


@contextmanager
def identified(request_id: str) -> Iterator[None]:
    """Errors of its block name the request that they belong to."""
    try:
        yield
    except EmotionError as error:
        error.request_id = request_id
        raise


def own_input_error(error: pipeline_errors.InvalidInput) -> InvalidInput:
    """The ground floor's InvalidInput as one that is also an EmotionError."""
    return InvalidInput(error.field, error.code, error.message)


def _from_server(text: str, status: str | None, where: str, otherwise: type[ServiceError]) -> EmotionError:
    text = REQUEST_ID.sub("", text.split(TRACEBACK)[0])
    said = InvalidInput.from_wire(text)
    if said is not None:
        return own_input_error(said)
    full = f"{where}: {text}"
    overloaded = pipeline_errors.Overloaded.from_wire(text)
    if overloaded is not None:
        return Overloaded(f"{where}: {overloaded}", status, overloaded.retry_after_s, overloaded.code)
    if QUEUE_FULL.search(text):
        return Overloaded(full, status)
    if RESTRICTED.search(text) or status in DENIED:
        return PermissionDenied(full, status)
    if UNKNOWN_MODEL.search(text):
        return UnknownPipeline(full, status)
    if status in LATE:
        return DeadlineExceeded(f"{where} didn't answer in time ({text})", status)
    if status in UNAVAILABLE or UNHEALTHY.search(text):
        return ServerUnavailable(f"{full}; is the server running?", status)
    return (_tensor_fault(text) if status in INVALID else None) or otherwise(full, status)


def _tensor_fault(text: str) -> InvalidInput | None:
    for pattern, code in TENSOR_FAULTS:
        found = pattern.search(text)
        if found:
            return InvalidInput(found[1], code, text.split(ADVICE)[0])
    return None


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether `error` is a `module.name`, without importing it: what isn't loaded raised nothing."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)
