"""What a server serves right now, in one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cmt_client.operations import GetModelConfig, GetStatistics, ModelReady, ModelStatistics
from cmt_client.result import release_of
from cmt_client.transport import Transport
from cmt_pipeline.pipelines import PIPELINES, candidate_of
from cmt_pipeline.release_info import CANARY_SHARE, ReleaseStamp
from cmt_pipeline.stages import STAGES

DEFAULT_STATUS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class PipelineStatus:
    """One pipeline. release: what it answers from; None if it isn't loaded or doesn't say."""

    name: str
    ready: bool
    release: ReleaseStamp | None
    statistics: tuple[ModelStatistics, ...]


@dataclass(frozen=True)
class TrialStatus:
    """A release on trial: its pipelines answer beside the live ones. canary_share: what following clients send it."""

    release: ReleaseStamp | None
    canary_share: float


@dataclass(frozen=True)
class ServerStatus:
    """Every pipeline in contract order, and each loaded version of every stage; the release on trial, if any.

    Triton's own readiness isn't asked: on 2.51 it is false for as long as any model loads or has failed to.
    """

    pipelines: tuple[PipelineStatus, ...]
    stages: tuple[ModelStatistics, ...]
    trial: TrialStatus | None = None

    @property
    def ready(self) -> bool:
        """Whether any pipeline answers."""
        return any(pipeline.ready for pipeline in self.pipelines)

    @property
    def live(self) -> tuple[int, ...]:
        """The releases that pipelines answer from: one, or two for the moment of a flip."""
        return tuple(sorted({p.release.release for p in self.pipelines if p.release is not None}))

    def to_json(self) -> dict[str, Any]:
        """The same, of types that `json.dumps` takes."""
        return {**asdict(self), "ready": self.ready, "live": list(self.live)}


def server_status(transport: Transport, timeout_s: float = DEFAULT_STATUS_TIMEOUT_S) -> ServerStatus:
    """Asks a server about every pipeline of this project. timeout_s: for each of the few calls.

    Raises ServerUnavailable when nobody answers, and the other ServiceErrors.
    """
    loaded = transport.call(GetStatistics(), timeout_s)
    return ServerStatus(
        pipelines=tuple(
            _pipeline_status(name, tuple(s for s in loaded if s.name == name), transport, timeout_s)
            for name in PIPELINES
        ),
        stages=tuple(s for s in loaded if s.name in STAGES),
        trial=_trial_status(loaded, transport, timeout_s),
    )


def _trial_status(loaded: tuple[ModelStatistics, ...], transport: Transport, timeout_s: float) -> TrialStatus | None:
    if not any(s.name == candidate_of("emotion") for s in loaded):
        return None
    description = transport.call(GetModelConfig(candidate_of("emotion")), timeout_s)
    share = description.parameters.get(CANARY_SHARE, "0")
    return TrialStatus(release_of(description), float(share))


def _pipeline_status(
    name: str, statistics: tuple[ModelStatistics, ...], transport: Transport, timeout_s: float
) -> PipelineStatus:
    ready = transport.call(ModelReady(name), timeout_s)
    release = release_of(transport.call(GetModelConfig(name), timeout_s)) if ready else None
    return PipelineStatus(name, ready, release, statistics)
