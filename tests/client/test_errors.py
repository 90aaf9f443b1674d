"""Every foreign error has one of ours."""

from __future__ import annotations

import asyncio
import pickle
import socket
import ssl
from collections.abc import Iterator

import aiohttp
import grpc
import pytest
import rapidjson
from tritonclient.grpc._utils import get_error_grpc
from tritonclient.utils import InferenceServerException

from cmt_client.errors import (
    ControlFailed,
    DeadlineExceeded,
    EmotionError,
    InferenceFailed,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    ServerUnavailable,
    ServiceError,
    UnknownPipeline,
    from_triton,
    translated,
)
from cmt_pipeline import errors as pipeline_errors

WHERE = "grpc://here:1"


class FakeRpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def debug_error_string(self) -> str:
        return ""


def subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


def bare(kind: type[BaseException]) -> BaseException:
    """An instance without its constructor's ceremony, which some need for their text."""
    simple = type(kind.__name__, (kind,), {"__str__": lambda self: "text"})
    return simple.__new__(simple)


NETWORK = [*subclasses(OSError), *subclasses(aiohttp.ClientError)]
IN_TIME = (TimeoutError, asyncio.TimeoutError)


@pytest.mark.parametrize("kind", NETWORK, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_every_network_error_is_mapped(kind: type[BaseException]) -> None:
    expected = DeadlineExceeded if issubclass(kind, IN_TIME) else ServerUnavailable
    ours = from_triton(bare(kind), WHERE)
    assert type(ours) is expected
    assert WHERE in str(ours)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(111, "Connection refused"), ServerUnavailable),
        (TimeoutError(110, "Connection timed out"), ServerUnavailable),  # the kernel's, while dialling
        (TimeoutError(), DeadlineExceeded),
        (asyncio.TimeoutError(), DeadlineExceeded),
        (socket.gaierror(-2, "Name or service not known"), ServerUnavailable),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), ServerUnavailable),
        (rapidjson.JSONDecodeError("Invalid value"), InferenceFailed),
    ],
)
def test_single_errors(error: BaseException, expected: type[EmotionError]) -> None:
    assert type(from_triton(error, WHERE)) is expected


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x"), ZeroDivisionError()])
def test_programming_errors_are_left_alone(error: Exception) -> None:
    assert from_triton(error, WHERE) is None
    with pytest.raises(type(error)), translated(WHERE):
        raise error


GRPC_STATUSES = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.CANCELLED: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_grpc_status_is_mapped(code: grpc.StatusCode) -> None:
    ours = from_triton(get_error_grpc(FakeRpcError(code, "it says this")), WHERE)
    assert type(ours) is GRPC_STATUSES.get(code, InferenceFailed)
    assert isinstance(ours, ServiceError)
    assert ours.status == str(code)
    assert "it says this" in str(ours)
    assert WHERE in str(ours)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("400", InferenceFailed),
        ("401", PermissionDenied),
        ("403", PermissionDenied),
        ("408", DeadlineExceeded),
        ("404", InferenceFailed),
        ("500", InferenceFailed),
        ("502", ServerUnavailable),
        ("503", ServerUnavailable),
        ("504", DeadlineExceeded),
    ],
)
def test_http_statuses(status: str, expected: type[ServiceError]) -> None:
    ours = from_triton(InferenceServerException("it says this", status=status), WHERE)
    assert type(ours) is expected


def test_an_error_without_text_or_status_is_mapped() -> None:
    assert type(from_triton(InferenceServerException(None), WHERE)) is InferenceFailed


def test_what_no_other_class_fits_is_what_the_operation_calls_a_failure() -> None:
    error = InferenceServerException("failed to load 'x', failed to poll from model repository", "500")
    assert type(from_triton(error, WHERE, ControlFailed)) is ControlFailed


# As tritonserver 2.51 says it; the status of gRPC and of HTTP.
SAYINGS = [
    ("StatusCode.NOT_FOUND", "404", "Request for unknown model: 'nope' is not found", UnknownPipeline),
    (
        "StatusCode.NOT_FOUND",
        "404",
        "Request for unknown model: 'emotion' version 7 is not found",
        UnknownPipeline,
    ),
    (
        "StatusCode.NOT_FOUND",
        "404",
        "Request for unknown model: 'x' has no available versions",
        UnknownPipeline,
    ),
    ("StatusCode.UNAVAILABLE", "503", "Model 'emotion' version 1 is not at ready state", UnknownPipeline),
    ("StatusCode.INVALID_ARGUMENT", "400", "requested model 'nope' is not available", UnknownPipeline),
    (
        "StatusCode.UNAVAILABLE",
        "403",
        "This protocol is restricted, expecting header 'triton-grpc-protocol-cmt-control'",
        PermissionDenied,
    ),
    ("StatusCode.UNAVAILABLE", "503", "Exceeds maximum queue size", Overloaded),
    ("StatusCode.INTERNAL", "500", "in ensemble 'emotion', engine broke", InferenceFailed),
    ("StatusCode.INTERNAL", "500", "in ensemble 'e', Stub process 'x_0_0' is not healthy.", ServerUnavailable),
]


@pytest.mark.parametrize(("grpc_status", "http_status", "text", "expected"), SAYINGS)
def test_what_triton_says(grpc_status: str, http_status: str, text: str, expected: type[ServiceError]) -> None:
    for status in (grpc_status, http_status):
        assert type(from_triton(InferenceServerException(text, status), WHERE)) is expected


REQUEST = "[request id: <id_unknown>] "
TENSOR_SAYINGS = [
    (
        "unexpected shape for input 'pixel_values' for model 'emotion_tensors'. Expected [-1,3,224,224], "
        "got [1,3,8,8]. NOTE: Setting a non-zero max_batch_size in the model config requires a batch",
        "pixel_values",
        "shape",
    ),
    (
        "expected 1 string elements for inference input 'image' for model 'emotion_image', got 0",
        "image",
        "shape",
    ),
    ("inference input 'image' data-type is 'FP32', but model 'm' expects 'BYTES'", "image", "dtype"),
    (
        "expected 3 inputs but got 1 inputs for model 'emotion'. Got input(s) ['image'], but missing "
        "required input(s) ['audio','text']. Please provide all required input(s).",
        "audio",
        "missing",
    ),
    (
        "expected 1 inputs but got 2 inputs for model 'm'. Got input(s) ['foo','image'], but",
        "inputs",
        "unexpected",
    ),
    ("unexpected inference input 'foo' for model 'm'", "foo", "unexpected"),
    ("input 'audio' batch size does not match other inputs for 'emotion'", "audio", "batch"),
    ("inference request batch-size must be <= 8 for 'emotion_image'", "batch", "too_large"),
]


@pytest.mark.parametrize("status", ["StatusCode.INVALID_ARGUMENT", "400"])
@pytest.mark.parametrize(("text", "field", "code"), TENSOR_SAYINGS)
def test_tensors_that_triton_refuses_are_invalid_input(text: str, field: str, code: str, status: str) -> None:
    ours = from_triton(InferenceServerException(REQUEST + text, status), WHERE)
    assert isinstance(ours, InvalidInput)
    assert (ours.field, ours.code) == (field, code)
    assert ours.message == text.split(" NOTE")[0]


@pytest.mark.parametrize("before", ["", "in ensemble 'emotion_image', "])
@pytest.mark.parametrize(
    "after", ["", "\n\nAt:\n  /models/preprocess_image/1/model.py(18): execute\n"], ids=["answered", "raised"]
)
def test_invalid_input_is_found_in_the_text_around_it(before: str, after: str) -> None:
    sent = pipeline_errors.InvalidInput("image", "not_decodable", "3 bytes came:\nsecond line é")
    ours = from_triton(InferenceServerException(before + sent.to_wire() + after, "500"), WHERE)
    assert isinstance(ours, InvalidInput)
    assert (ours.field, ours.code, ours.message) == (sent.field, sent.code, sent.message)


def test_invalid_input_is_caught_by_each_of_its_names() -> None:
    error = InvalidInput("image", "empty", "got 0 bytes")
    for name in (EmotionError, ValueError, pipeline_errors.InvalidInput):
        assert isinstance(error, name)
    assert not isinstance(error, ServiceError)


@pytest.mark.parametrize(
    "error",
    [InvalidInput("image", "empty", "got 0 bytes"), ServerUnavailable("gone", "StatusCode.UNAVAILABLE")],
)
def test_errors_travel_between_processes(error: EmotionError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_the_foreign_error_stays_as_cause() -> None:
    with pytest.raises(ServerUnavailable) as raised, translated(WHERE):
        raise ConnectionResetError(104, "reset")
    assert isinstance(raised.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("status", ["StatusCode.UNAVAILABLE", "503"])
def test_a_refusal_for_load_says_when_to_come_back(status: str) -> None:
    said = pipeline_errors.Overloaded("deadline", 1.25, "got much;\nexpected less")
    ours = from_triton(InferenceServerException(f"in ensemble 'emotion', {said.to_wire()}", status), WHERE)
    assert isinstance(ours, Overloaded)
    assert (ours.code, ours.retry_after_s, ours.status) == ("deadline", 1.25, status)
    assert str(ours) == f"{WHERE}: got much;\nexpected less"


def test_a_full_queue_of_triton_is_a_refusal_for_load() -> None:
    text = "in ensemble 'emotion', [request id: <id_unknown>] Exceeds maximum queue size"
    ours = from_triton(InferenceServerException(text, "StatusCode.UNAVAILABLE"), WHERE)
    assert isinstance(ours, Overloaded)
    assert ours.retry_after_s > 0
