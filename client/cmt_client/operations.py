"""What can be asked of a Triton server, as data: one frozen dataclass for each operation.

An operation knows the method of tritonclient's clients that performs it, its arguments and how to read the
reply; the four clients (gRPC and HTTP, blocking and asyncio) share those names. So a transport needs a single
method.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote

from tritonclient.utils import np_to_triton_dtype

from cmt_client.errors import ControlFailed, InferenceFailed, ServiceError
from cmt_pipeline.tensors import Array, Arrays

T = TypeVar("T")


@dataclass(frozen=True)
class Wire:
    """How one protocol spells things.

    module: `tritonclient.grpc` or `tritonclient.http`, for its tensor classes; token_header: carries the
    control token; as_json: arguments that make a description come back as a dictionary.
    """

    module: ModuleType
    token_header: str
    as_json: Mapping[str, bool]


@dataclass(frozen=True)
class HttpCall:
    """An operation as Triton's HTTP service takes it, with JSON on both sides. token: of a restricted API."""

    verb: str
    path: str
    body: bytes | None = None
    token: str | None = field(default=None, repr=False)


class Operation(ABC, Generic[T]):
    """One call of a server that gives a T.

    method: its name on tritonclient's clients; yes_or_no: whether HTTP's status is the whole reply; failure: the error
    for a refusal that no other class fits.
    """

    method: ClassVar[str]
    yes_or_no: ClassVar[bool] = False
    failure: ClassVar[type[ServiceError]] = InferenceFailed

    @abstractmethod
    def arguments(self, wire: Wire) -> dict[str, Any]:
        """Keyword arguments of the method."""

    @abstractmethod
    def decode(self, reply: Any) -> T:
        """The method's return value as ours."""

    def http(self) -> HttpCall:
        """The same over plain HTTP. TypeError for an operation whose tensors want tritonclient's encoding."""
        raise TypeError(f"{type(self).__name__} needs a transport of tritonclient's")

    def deadline(self, timeout_s: float) -> dict[str, Any]:  # noqa: ARG002
        """Further arguments that tell the server how long the caller waits, where it can use that."""
        return {}


@dataclass(frozen=True)
class InferAnswer:
    """Output tensors [batch, ...] by name. Which release made them is one of these."""

    model: str
    outputs: Arrays
    request_id: str = ""


@dataclass(frozen=True)
class Infer(Operation[InferAnswer]):
    """One inference request: input tensors [batch, ...] by name. Safe to repeat."""

    model: str
    inputs: Arrays
    outputs: tuple[str, ...]
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    method = "infer"

    def arguments(self, wire: Wire) -> dict[str, Any]:
        return {
            "model_name": self.model,
            "inputs": [_tensor(wire.module, name, array) for name, array in self.inputs.items()],
            "outputs": [wire.module.InferRequestedOutput(name) for name in self.outputs],
            "request_id": self.request_id,
            "headers": dict(self.headers) or None,
        }

    def deadline(self, timeout_s: float) -> dict[str, Any]:
        """Triton's `timeout` in microseconds: the stage before the fan-out drops what can't be answered in time."""
        return {"timeout": max(1, int(timeout_s * 1e6))}

    def decode(self, reply: Any) -> InferAnswer:
        response = reply.get_response()
        request_id = response.get("id", "") if isinstance(response, dict) else response.id
        arrays = {name: reply.as_numpy(name) for name in self.outputs}
        return InferAnswer(self.model, {n: array for n, array in arrays.items() if array is not None}, request_id)


def _tensor(module: ModuleType, name: str, array: Array) -> Any:
    tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


@dataclass(frozen=True)
class ServerLive(Operation[bool]):
    """Whether the server process answers."""

    method = "is_server_live"
    yes_or_no = True

    def arguments(self, wire: Wire) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def http(self) -> HttpCall:
        return HttpCall("GET", "/v2/health/live")

    def decode(self, reply: Any) -> bool:
        return bool(reply)


@dataclass(frozen=True)
class ModelReady(Operation[bool]):
    """Whether a model answers; False for one that the server doesn't have."""

    model: str

    method = "is_model_ready"
    yes_or_no = True

    def arguments(self, wire: Wire) -> dict[str, Any]:  # noqa: ARG002
        return {"model_name": self.model}

    def http(self) -> HttpCall:
        return HttpCall("GET", f"/v2/models/{quote(self.model, '')}/ready")

    def decode(self, reply: Any) -> bool:
        return bool(reply)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the server describes it: dims without batch, -1 where the length varies."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What a model's Triton configuration says that a client can use."""

    name: str
    max_batch_size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class GetModelConfig(Operation[ModelDescription]):
    """The configuration that a model runs with."""

    model: str

    method = "get_model_config"

    def arguments(self, wire: Wire) -> dict[str, Any]:
        return {"model_name": self.model, **wire.as_json}

    def http(self) -> HttpCall:
        return HttpCall("GET", f"/v2/models/{quote(self.model, '')}/config")

    def decode(self, reply: Any) -> ModelDescription:
        config = reply.get("config", reply)  # gRPC wraps it
        return ModelDescription(
            name=config["name"],
            max_batch_size=int(config.get("max_batch_size", 0)),
            inputs=_tensor_infos(config.get("input", ())),
            outputs=_tensor_infos(config.get("output", ())),
            parameters={key: value["string_value"] for key, value in config.get("parameters", {}).items()},
        )


def _tensor_infos(tensors: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(t["name"], _datatype(t["data_type"]), tuple(int(dim) for dim in t["dims"])) for t in tensors
    )


def _datatype(configured: str) -> str:
    """A datatype of a configuration as requests and the tensor contract write it."""
    name = configured.removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


@dataclass(frozen=True)
class Timing:
    """Requests and the time they took together."""

    count: int = 0
    total_ns: int = 0


@dataclass(frozen=True)
class ModelStatistics:
    """What one model version did since it was loaded.

    inference_count counts items, execution_count the batches they ran in; batches: batch size -> executions.
    """

    name: str
    version: int
    inference_count: int
    execution_count: int
    success: Timing
    fail: Timing
    queue: Timing
    compute_input: Timing
    compute_infer: Timing
    compute_output: Timing
    batches: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GetStatistics(Operation[tuple[ModelStatistics, ...]]):
    """Statistics of every loaded version of a model, or of all models when it is "" (Triton's convention)."""

    model: str = ""

    method = "get_inference_statistics"

    def arguments(self, wire: Wire) -> dict[str, Any]:
        return {"model_name": self.model, **wire.as_json}

    def http(self) -> HttpCall:
        return HttpCall("GET", f"/v2/models/{quote(self.model, '')}/stats" if self.model else "/v2/models/stats")

    def decode(self, reply: Any) -> tuple[ModelStatistics, ...]:
        return tuple(_statistics(entry) for entry in reply.get("model_stats", ()))


def _statistics(entry: Any) -> ModelStatistics:
    # gRPC's JSON leaves zeros out and writes 64-bit numbers as text.
    times = entry.get("inference_stats", {})
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return ModelStatistics(
        name=entry["name"],
        version=int(entry["version"]),
        inference_count=int(entry.get("inference_count", 0)),
        execution_count=int(entry.get("execution_count", 0)),
        batches={int(b["batch_size"]): _timing(b["compute_infer"]).count for b in entry.get("batch_stats", ())},
        **{kind: _timing(times.get(kind, {})) for kind in kinds},
    )


def _timing(value: Any) -> Timing:
    return Timing(int(value.get("count", 0)), int(value.get("ns", 0)))


@dataclass(frozen=True)
class ControlOperation(Operation[T]):
    """An operation of the model-repository API, which a server may restrict to holders of a token."""

    token: str | None = field(default=None, repr=False, kw_only=True)

    failure = ControlFailed

    def arguments(self, wire: Wire) -> dict[str, Any]:
        return {"headers": {wire.token_header: self.token} if self.token else None}


@dataclass(frozen=True)
class IndexEntry:
    """One model of the repository. version is None and state empty when it was never loaded."""

    name: str
    version: int | None
    state: str
    reason: str


@dataclass(frozen=True)
class GetIndex(ControlOperation[tuple[IndexEntry, ...]]):
    """Every model that lies in the repository, loaded or not."""

    method = "get_model_repository_index"

    def arguments(self, wire: Wire) -> dict[str, Any]:
        return {**super().arguments(wire), **wire.as_json}

    def http(self) -> HttpCall:
        return HttpCall("POST", "/v2/repository/index", b"{}", self.token)

    def decode(self, reply: Any) -> tuple[IndexEntry, ...]:
        entries = reply.get("models", ()) if isinstance(reply, dict) else reply  # gRPC wraps the list
        return tuple(
            IndexEntry(
                e["name"],
                int(e["version"]) if e.get("version") else None,
                e.get("state", ""),
                e.get("reason", ""),
            )
            for e in entries
        )


@dataclass(frozen=True)
class LoadModel(ControlOperation[None]):
    """Loads or reloads a model. config: overrides its config.pbtxt, and stays in force for later loads."""

    model: str
    config: Mapping[str, Any] | None = None

    method = "load_model"

    def arguments(self, wire: Wire) -> dict[str, Any]:
        config = None if self.config is None else json.dumps(self.config)
        return {**super().arguments(wire), "model_name": self.model, "config": config}

    def http(self) -> HttpCall:
        parameters = {} if self.config is None else {"config": json.dumps(self.config)}
        body = json.dumps({"parameters": parameters}).encode()
        return HttpCall("POST", f"/v2/repository/models/{quote(self.model, '')}/load", body, self.token)

    def decode(self, reply: Any) -> None:
        del reply


@dataclass(frozen=True)
class UnloadModel(ControlOperation[None]):
    """Unloads every version of a model. dependents: also what only this model needed."""

    model: str
    dependents: bool = False

    method = "unload_model"

    def arguments(self, wire: Wire) -> dict[str, Any]:
        return {**super().arguments(wire), "model_name": self.model, "unload_dependents": self.dependents}

    def http(self) -> HttpCall:
        body = json.dumps({"parameters": {"unload_dependents": self.dependents}}).encode()
        return HttpCall("POST", f"/v2/repository/models/{quote(self.model, '')}/unload", body, self.token)

    def decode(self, reply: Any) -> None:
        del reply
