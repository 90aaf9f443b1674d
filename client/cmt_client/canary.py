"""Canary: which of a client's requests the release on trial answers.

While an upgrade tries a release out, its pipelines stand beside the live ones and name the share of requests that
clients should send there. A client that follows it asks for that share every few seconds, and asks the live release
again whenever the one on trial fails: a caller never sees a bad release.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cmt_client.operations import GetModelConfig, Infer
from cmt_pipeline.pipelines import candidate_of
from cmt_pipeline.release_info import CANARY_SHARE

#: `off`: the live release alone; `follow`: the share that the server names; `only`: the release on trial alone.
CanaryMode = Literal["off", "follow", "only"]
MODES: tuple[CanaryMode, ...] = ("off", "follow", "only")

REFRESH_S = 2.0


@dataclass(frozen=True)
class _Share:
    value: float
    until_s: float


class Canary:
    """Routes the requests of one client. Threads may share it."""

    def __init__(
        self,
        mode: CanaryMode,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"canary: got {mode!r}; expected one of {', '.join(MODES)}")
        self._mode = mode
        self._draw = draw
        self._clock = clock
        self._shares: dict[str, _Share] = {}

    def question(self, request: Infer) -> GetModelConfig | None:
        """What to ask the server before this request is routed; None where nothing needs asking."""
        if self._mode != "follow":
            return None
        known = self._shares.get(request.model)
        return GetModelConfig(candidate_of(request.model)) if known is None or known.until_s < self._clock() else None

    def learn(self, request: Infer, parameters: Mapping[str, str]) -> None:
        """The answer to `question`: what the candidate's configuration says; nothing where there is none."""
        try:
            share = min(1.0, max(0.0, float(parameters.get(CANARY_SHARE, "0"))))
        except ValueError:
            share = 0.0
        self._shares[request.model] = _Share(share, self._clock() + REFRESH_S)

    def routed(self, request: Infer) -> Infer:
        """The request as it is, or to the same pipeline of the release on trial."""
        share = self._shares.get(request.model)
        if self._mode == "only" or (share is not None and self._draw() < share.value):
            return replace(request, model=candidate_of(request.model))
        return request

    def falls_back(self, request: Infer, routed: Infer) -> bool:
        """Whether a failure of `routed` is made good by the live release."""
        return self._mode == "follow" and routed is not request
