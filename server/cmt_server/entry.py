"""What both stages do that a request meets first: let it in or turn it away, say which release answers, and count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cmt_pipeline.errors import DRAINING, InvalidInput, Overloaded
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.pipelines import Entrance, pipeline_name
from cmt_pipeline.release_info import STAMP_FILE, ReleaseStamp
from cmt_pipeline.stages import RAW, READY, RELEASE, STAGES
from cmt_server.admission import Gate
from cmt_server.counts import LoadedRelease, RequestCounts, warm_ups
from cmt_server.draining import Busy
from cmt_server.pool import Outcome
from cmt_server.queues import Watch
from cmt_server.stage_model import opened, response

#: The tensors of a modality at either entrance.
NAMES: Mapping[Modality, set[str]] = {m: {RAW[m].name, *(spec.name for spec in READY[m])} for m in MODALITIES}


@dataclass(frozen=True)
class Visit:
    """A request at the gate. deadline_s: when its caller stops waiting (CLOCK_MONOTONIC), if it says so; refused: why
    it wasn't let in, if so."""

    request_id: str
    modalities: tuple[Modality, ...]
    deadline_s: float | None
    refused: Overloaded | InvalidInput | None

    @property
    def admitted(self) -> bool:
        return self.refused is None

    def late(self) -> Overloaded | None:
        """Why it isn't worth any work, if nobody waits for it any more."""
        if self.deadline_s is None or time.monotonic() < self.deadline_s:
            return None
        return Overloaded("deadline", 0.0, "got a request whose caller has stopped waiting; expected a later deadline")


class Entry:
    """Of one instance of a stage before the fan-out."""

    def __init__(self, args: Mapping[str, str], entrance: Entrance) -> None:
        stage, folder, parameters = opened(args)
        path = folder / STAMP_FILE
        text = path.read_text() if path.is_file() else "{}"  # the repository in git serves no release
        stamp = ReleaseStamp.from_json(text) if path.is_file() else None
        self._text, self._entrance = text.encode(), entrance
        self._loaded = LoadedRelease(stamp) if stamp and entrance == "raw" else None
        self._counts = RequestCounts(stamp, warm_ups(json.loads(args["model_config"])))
        self._offered = stamp.modalities if stamp else MODALITIES
        self._busy = Busy()
        behind = [name for name, other in STAGES.items() if other.compiled]
        self._gate = Gate(stage.name, behind, Limits.from_text(parameters).max_wait_s)
        self._watch = Watch(self._gate, pb.Logger.log_warn)

    def serve(self, requests: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
        """The responses to a batch: those of `work`, or none is let in any more."""
        if self._busy.draining():
            responses = [self._turned_away(request) for request in requests]
        else:
            with self._busy.with_(len(requests)):
                responses = [work(request) for request in requests]
        self._counts.publish()
        return responses

    def admit(self, request: Any, modalities: tuple[Modality, ...]) -> Visit:
        """Lets a request in, or says why not; either way it is to be `answered`, once. Triton's `timeout` of a request,
        in microseconds, is how long its caller waits."""
        self._watch.wake()
        unread = [m for m in modalities if m not in self._offered]
        if unread and not self._counts.warming_up:  # Triton itself warms up with all of them
            return Visit(request.request_id(), modalities, None, self._not_offered(unread[0]))
        left_s = request.timeout() / 1e6 or None
        deadline_s = None if left_s is None else time.monotonic() + left_s
        return Visit(request.request_id(), modalities, deadline_s, self._gate.admit(_stages(modalities), left_s))

    def answered(self, visit: Visit, outcome: Outcome) -> Any:
        """The response to a request: the tensors of the outcome, or why it gets none."""
        fault = isinstance(outcome, Exception)
        if visit.admitted:
            self._gate.leave(_stages(visit.modalities), onwards=not fault)
        if isinstance(outcome, (InvalidInput, Overloaded)):
            self._counts.note(self._pipeline(visit.modalities), (outcome.field, outcome.code))
        if isinstance(outcome, Exception):
            return response(outcome, visit.request_id)
        self._counts.note(self._pipeline(visit.modalities), None)
        batch = max((len(array) for array in outcome.values()), default=1)
        return response({**outcome, RELEASE.name: np.full((batch, 1), self._text, np.object_)})

    def keep(self) -> None:
        """A request is still in hand when `serve` returns, until `handed_over`."""
        self._busy.add(1)

    def handed_over(self) -> None:
        """The response to a request that was kept is out."""
        self._busy.add(-1)

    def publish(self) -> None:
        """Lets the counts of all responses so far show, where no `serve` will soon."""
        self._counts.publish()

    def leave(self) -> None:
        """At the stage's end."""
        self._watch.close()
        if self._loaded:
            self._loaded.leave()

    def _not_offered(self, modality: Modality) -> InvalidInput:
        offered = " and ".join(self._offered)
        return InvalidInput(modality, "not_offered", f"got {modality}; expected {offered}: the release reads no other")

    def _turned_away(self, request: Any) -> Any:
        asked = {tensor.name() for tensor in request.inputs()}
        self._counts.note(self._pipeline([m for m in MODALITIES if asked & NAMES[m]]), ("", "draining"))
        return pb.InferenceResponse(error=pb.TritonError(DRAINING, pb.TritonError.UNAVAILABLE))

    def _pipeline(self, modalities: Sequence[Modality]) -> str:
        return pipeline_name(modalities, self._entrance) if modalities else "none"


def _stages(modalities: Sequence[Modality]) -> tuple[str, ...]:
    """Those that a request goes on to."""
    return (*(f"encode_{m}" for m in modalities), "fuse")
