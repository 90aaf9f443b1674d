"""FakeTransport: a server that isn't there, for the tests of what is built on the client.

fake = FakeTransport()
fake.fail(ServerUnavailable("gone"))                     # the next call fails, the one after answers
client = EmotionClient("fake:1", transport=fake)
client.predict(text="hello").label                       # "joy"
fake.calls[0]                                            # Infer(model="emotion_text", …)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from cmt_client.errors import UnknownPipeline, translated
from cmt_client.operations import (
    GetIndex,
    GetModelConfig,
    GetStatistics,
    IndexEntry,
    Infer,
    InferAnswer,
    LoadModel,
    ModelDescription,
    ModelReady,
    ModelStatistics,
    Operation,
    ServerLive,
    TensorInfo,
    Timing,
    UnloadModel,
)
from cmt_pipeline.labels import DEFAULT_LABEL_SET, labels_of
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.pipelines import CANDIDATE_PREFIX, PIPELINE_VERSION, PIPELINES, candidate_of, pipeline_of
from cmt_pipeline.release_info import CANARY_SHARE, RELEASE, ReleaseStamp
from cmt_pipeline.stages import FACE, STAGES

T = TypeVar("T")

LABELS = labels_of(DEFAULT_LABEL_SET)
FAKE_RELEASE = ReleaseStamp(1, DEFAULT_LABEL_SET, LABELS, "mini", "fake", "fp32", trained=False, digest="f" * 64)


class FakeTransport:
    """Answers as a healthy server with one release would; every pipeline is ready and says `label`.

    calls: the operations received, in order; timeouts_s: what each was given; release: what it serves, may
    be replaced; candidate: a release on trial beside it, if any, which clients should send canary_share of their
    requests; unloaded: models that it says it doesn't have; closed: whether it was.
    """

    def __init__(self, release: ReleaseStamp = FAKE_RELEASE, label: str = "joy") -> None:
        self.release = release
        self.candidate: ReleaseStamp | None = None
        self.canary_share = 0.0
        self.label = label
        self.calls: list[Operation[Any]] = []
        self.timeouts_s: list[float] = []
        self.unloaded: set[str] = set()
        self.closed = False
        self._failures: deque[Exception] = deque()
        self._answers: dict[type[Operation[Any]], Callable[[Any], Any]] = {}
        self._lock = threading.Lock()

    def fail(self, *errors: Exception) -> None:
        """The next calls raise these, one each, ours or a network library's."""
        self._failures.extend(errors)

    def answer(self, kind: type[Operation[T]], make: Callable[[Any], T]) -> None:
        """Operations of this kind are answered by `make(operation)` from now on; it may raise."""
        self._answers[kind] = make

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        with self._lock:
            self.calls.append(operation)
            self.timeouts_s.append(timeout_s)
            failure = self._failures.popleft() if self._failures else None
        with translated("fake", operation.failure):
            if failure is not None:
                raise failure
            make = self._answers.get(type(operation), self._healthy)
            reply: T = make(operation)
            return reply

    def close(self) -> None:
        self.closed = True

    def _healthy(self, operation: Any) -> Any:
        model = getattr(operation, "model", "")
        if isinstance(operation, LoadModel):
            return self.unloaded.discard(model)
        if isinstance(operation, UnloadModel):
            return self.unloaded.add(model)
        if isinstance(operation, ServerLive):
            return True
        if isinstance(operation, ModelReady):
            return model in self._models()
        if isinstance(operation, GetIndex):
            return tuple(IndexEntry(name, PIPELINE_VERSION, "READY", "") for name in self._models())
        if model and model not in self._models():
            raise UnknownPipeline(f"fake: Request for unknown model: '{model}' is not found")
        if isinstance(operation, GetStatistics):
            return tuple(self._statistics(name) for name in ([model] if model else self._models()))
        if isinstance(operation, GetModelConfig):
            return self._describe(model)
        return self._infer(operation)

    def _models(self) -> Sequence[str]:
        on_trial = map(candidate_of, PIPELINES) if self.candidate else ()
        return [name for name in (*PIPELINES, *on_trial, *STAGES) if name not in self.unloaded]

    def _release_of(self, model: str) -> ReleaseStamp:
        return self.candidate if self.candidate and model.startswith(CANDIDATE_PREFIX) else self.release

    def _infer(self, request: Infer) -> InferAnswer:
        release = self._release_of(request.model)
        labels = release.labels
        batch = len(next(iter(request.inputs.values())))
        probabilities = np.full(len(labels), 0.4 / (len(labels) - 1), np.float32)
        probabilities[labels.index(self.label)] = 0.6
        present = np.array([m in pipeline_of(request.model).modalities for m in MODALITIES], np.float32)
        row = {
            "logits": np.log(probabilities),
            "probabilities": probabilities,
            "valence_arousal": np.array([0.5, -0.25], np.float32),
            "attention": present / present.sum(),
            FACE.name: np.array([b""], np.object_),
            RELEASE: np.array([release.to_json().encode()], np.object_),
        }
        outputs = {name: np.tile(row[name], (batch, 1)) for name in request.outputs}
        return InferAnswer(request.model, outputs, request.request_id)

    def _describe(self, model: str) -> ModelDescription:
        part = STAGES[model] if model in STAGES else pipeline_of(model)
        inputs, outputs = (
            tuple(TensorInfo(spec.name, spec.dtype, spec.dims) for spec in specs)
            for specs in (part.inputs, part.outputs)
        )
        parameters = {RELEASE: self._release_of(model).to_json()}
        if model.startswith(CANDIDATE_PREFIX):
            parameters[CANARY_SHARE] = str(self.canary_share)
        return ModelDescription(model, 8, inputs, outputs, parameters)

    def _statistics(self, model: str) -> ModelStatistics:
        count = sum(isinstance(call, Infer) and call.model == model for call in self.calls)
        took = Timing(count, 1_000_000 * count)
        return ModelStatistics(
            model,
            PIPELINE_VERSION,
            count,
            count,
            took,
            Timing(),
            Timing(),
            Timing(),
            took,
            Timing(),
            {1: count},
        )


class AsyncFakeTransport:
    """The same for an AsyncEmotionClient: answers from `fake`."""

    def __init__(self, fake: FakeTransport | None = None) -> None:
        self.fake = fake or FakeTransport()

    async def call(self, operation: Operation[T], timeout_s: float) -> T:
        return self.fake.call(operation, timeout_s)

    async def close(self) -> None:
        self.fake.close()
