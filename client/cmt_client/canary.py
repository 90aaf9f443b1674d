"""Canary: a transport around a transport, which lets the release on trial answer some of a client's requests.

While an upgrade tries a release out, its pipelines stand beside the live ones and name the share of requests that
clients should send there. A client that follows it asks for that share every few seconds, and asks the live release
again whenever the one on trial fails or refuses: a caller never sees a bad release.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from cmt_client.errors import EmotionError
from cmt_client.operations import GetModelConfig, Infer, InferAnswer, Operation
from cmt_client.result import emotions_from
from cmt_client.transport import AsyncTransport, Transport
from cmt_pipeline.pipelines import candidate_of
from cmt_pipeline.release_info import CANARY_SHARE

T = TypeVar("T")

#: `off`: the live release alone; `follow`: the share that the server names; `only`: the release on trial alone.
CanaryMode = Literal["off", "follow", "only"]
MODES: tuple[CanaryMode, ...] = ("off", "follow", "only")

#: Yields a call and how long it may take, is sent its reply or thrown its error, and returns the answer.
Plan: TypeAlias = "Generator[tuple[Operation[Any], float], Any, Any]"

REFRESH_S = 2.0
QUESTION_S = 1.0  # at most, and at most a quarter of what the caller waits


@dataclass(frozen=True)
class _Share:
    value: float
    until_s: float


_NOTHING = _Share(0.0, float("-inf"))


class Routing:
    """Which requests go to the release on trial. Threads may share it."""

    def __init__(
        self,
        mode: CanaryMode,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"canary: got {mode!r}; expected one of {', '.join(MODES)}")
        self.mode = mode
        self._draw = draw
        self._clock = clock
        self._shares: dict[str, _Share] = {}

    def question(self, request: Infer) -> GetModelConfig | None:
        """What to ask the server before this request is routed; None where nothing needs asking, or somebody does."""
        known = self._shares.get(request.model, _NOTHING)
        if self.mode != "follow" or self._clock() < known.until_s:
            return None
        self._shares[request.model] = _Share(known.value, self._clock() + REFRESH_S)
        return GetModelConfig(candidate_of(request.model))

    def learn(self, request: Infer, parameters: Mapping[str, str]) -> None:
        """The answer to `question`: what the candidate's configuration says; nothing where there is none."""
        try:
            share = min(1.0, max(0.0, float(parameters.get(CANARY_SHARE, "0"))))
        except ValueError:
            share = 0.0
        self._shares[request.model] = _Share(share, self._clock() + REFRESH_S)

    def plan(self, request: Infer, timeout_s: float) -> Plan:
        """The calls that a request takes. A question costs no retry; half of the time is the live release's."""
        end_s = self._clock() + timeout_s
        question = self.question(request)
        if question is not None:
            try:
                self.learn(request, (yield question, min(QUESTION_S, timeout_s / 4)).parameters)
            except EmotionError:
                self.learn(request, {})
        trial = replace(request, model=candidate_of(request.model))
        if self.mode == "only":
            return (yield trial, timeout_s)
        if self._draw() < self._shares.get(request.model, _NOTHING).value:
            try:
                answer: InferAnswer = yield trial, (end_s - self._clock()) / 2
                emotions_from(answer)
            except EmotionError:
                pass  # the live release answers instead
            else:
                return answer
        return (yield request, max(0.0, end_s - self._clock()))


class CanaryTransport:
    """For blocking callers."""

    def __init__(self, inner: Transport, routing: Routing) -> None:
        self._inner, self._routing = inner, routing

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        if not isinstance(operation, Infer):
            return self._inner.call(operation, timeout_s)
        plan = self._routing.plan(operation, timeout_s)
        try:
            step = next(plan)
            while True:
                try:
                    reply = self._inner.call(*step)
                except EmotionError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def close(self) -> None:
        self._inner.close()


class AsyncCanaryTransport:
    """The same for asyncio callers."""

    def __init__(self, inner: AsyncTransport, routing: Routing) -> None:
        self._inner, self._routing = inner, routing

    async def call(self, operation: Operation[T], timeout_s: float) -> T:
        if not isinstance(operation, Infer):
            return await self._inner.call(operation, timeout_s)
        plan = self._routing.plan(operation, timeout_s)
        try:
            step = next(plan)
            while True:
                try:
                    reply = await self._inner.call(*step)
                except EmotionError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def close(self) -> None:
        await self._inner.close()
