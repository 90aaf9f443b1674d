"""ModelControl: loads and unloads models on a running server, for upgrades.

Loading a model runs its code, so a server that listens beyond this machine restricts the API to holders of a
token: `tritonserver --http-restricted-api=model-repository:cmt-control=TOKEN`, and the same with
`--grpc-restricted-protocol`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cmt_client.control_transport import ControlTransport
from cmt_client.errors import UnknownPipeline
from cmt_client.operations import (
    GetIndex,
    GetModelConfig,
    GetStatistics,
    IndexEntry,
    LoadModel,
    ModelDescription,
    ModelReady,
    ModelStatistics,
    UnloadModel,
)
from cmt_client.result import release_of
from cmt_client.transport import Address, Transport, connect
from cmt_pipeline.limits import DEFAULT_LIMITS

DEFAULT_LOAD_TIMEOUT_S = 300.0  # a load compiles or warms up before it answers
ANSWER_TIMEOUT_S = 30.0


def connect_control(url: str, root_certificates: Path | None = None) -> Transport:
    """A transport for control and status; nothing is sent yet. ValueError for a URL that isn't one."""
    if Address.parse(url).protocol == "http":
        return ControlTransport(url, root_certificates)
    return connect(url, DEFAULT_LIMITS, root_certificates)


class ModelControl:
    """A blocking client of the model-repository API. Nothing is ever repeated: a load isn't safe to.

    url, transport, root_certificates: as EmotionClient's; token: what the server's restricted API expects;
    timeout_s: for one load; other calls get ANSWER_TIMEOUT_S of it at most. A load that misses its deadline goes on in
    the server. Over HTTP the standard library does it all.

    Raises ControlFailed when the server refuses, PermissionDenied without the right token, ServerUnavailable,
    DeadlineExceeded, and UnknownPipeline where a model must be loaded to be asked about.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
        transport: Transport | None = None,
        root_certificates: Path | None = None,
    ) -> None:
        self._transport = transport or connect_control(url, root_certificates)
        self._token = token
        self._timeout_s = timeout_s
        self._answer_s = min(timeout_s, ANSWER_TIMEOUT_S)

    def load(self, model: str, config: Mapping[str, Any] | None = None) -> None:
        """Loads a model or, if it is loaded, brings it up to date; back when it is ready.

        config: overrides its config.pbtxt, as JSON; Triton keeps it for later loads of this model too.
        """
        self._transport.call(LoadModel(model, config, token=self._token), self._timeout_s)

    def unload(self, model: str, *, dependents: bool = False) -> None:
        """Unloads every version of a model, with `dependents` its stages too. Silent if it isn't loaded."""
        self._transport.call(UnloadModel(model, dependents, token=self._token), self._timeout_s)

    def index(self) -> tuple[IndexEntry, ...]:
        """Every model of the repository with its loaded versions and their states."""
        return self._transport.call(GetIndex(token=self._token), self._answer_s)

    def ready(self, model: str) -> bool:
        """Whether a version of the model answers."""
        return self._transport.call(ModelReady(model), self._answer_s)

    def describe(self, model: str) -> ModelDescription:
        """The configuration that a loaded model runs with."""
        return self._transport.call(GetModelConfig(model), self._answer_s)

    def release(self, pipeline: str) -> int | None:
        """The release that a pipeline answers from; None if it isn't loaded, or doesn't say."""
        try:
            stamp = release_of(self.describe(pipeline)) if self.ready(pipeline) else None
        except UnknownPipeline:
            return None
        return stamp.release if stamp else None

    def statistics(self, model: str = "") -> tuple[ModelStatistics, ...]:
        """Counts and times of each loaded version of a model, of all models by default."""
        return self._transport.call(GetStatistics(model), self._answer_s)

    def close(self) -> None:
        """Lets go of the connection."""
        self._transport.close()

    def __enter__(self) -> ModelControl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
