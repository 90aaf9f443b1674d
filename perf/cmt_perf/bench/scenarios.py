"""What is asked of every system: scenarios as data.

Named as MLPerf Inference names them (Reddi et al. 2020, arXiv 1911.02549) where it has a name: single stream, server
(an open loop), offline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmt_perf.load_clients import Kind
from cmt_perf.traffic import TrafficPlan

Shape = Literal["closed", "open", "batch"]

MOST_ITEMS = 128  # different requests of a round


@dataclass(frozen=True)
class Size:
    """Of every request: seconds of sound, tokens with [CLS] and [SEP], pixels of each side of the JPEG."""

    audio_s: float = 4.0
    text_tokens: int = 64
    image_px: int = 512


@dataclass(frozen=True)
class Scenario:
    """closed: `concurrency` loops that ask again once answered; open: `rate` requests a second at random moments
    (Poisson), each late from when it was meant to be sent; batch: `concurrency` requests at once, then again.

    requests: counted answers of each system in each round.
    """

    name: str
    shape: Shape
    concurrency: int = 1
    rate: float = 0.0
    requests: int = 30
    size: Size = Size()

    def __post_init__(self) -> None:
        if (self.shape == "open") != (self.rate > 0):
            raise ValueError(f"rate: got {self.rate:g} for {self.shape!r}; expected above 0 for open, 0 for others")
        if self.concurrency < 1 or self.requests < 1:
            raise ValueError(f"concurrency and requests: got {self.concurrency}, {self.requests}; expected 1 or more")

    def plan(self, kind: Kind, url: str, seed: int) -> TrafficPlan:
        """The traffic that asks a system, of its kind at its URL."""
        closed = self.concurrency if self.shape == "closed" else int(self.shape == "batch")
        return TrafficPlan(
            url,
            url,
            closed_grpc=closed,
            closed_http=0,
            open_rate=self.rate,
            open_protocols=("grpc",),
            open_canary="off",
            items=min(MOST_ITEMS, self.requests),
            audio_s=self.size.audio_s,
            text_tokens=self.size.text_tokens,
            image_px=self.size.image_px,
            seed=seed,
            together=self.concurrency if self.shape == "batch" else 1,
            kind=kind,
        )


SINGLE_STREAM = Scenario("single stream", "closed", 1)

CONCURRENCIES = (1, 2, 4, 8, 16)
BATCHES = (1, 2, 4, 8)
AUDIO_S = (1.0, 2.0, 4.0, 8.0, 16.0)


def growth(requests: int) -> tuple[Scenario, ...]:
    """How cost grows: with concurrency, with the batch, with the length of the sound. `requests` or more of each."""
    return (
        *(Scenario(f"concurrency {n}", "closed", n, requests=max(requests, 2 * n)) for n in CONCURRENCIES),
        *(Scenario(f"batch {n}", "batch", n, requests=requests) for n in BATCHES),
        *(Scenario(f"{s:g} s of sound", "closed", 1, requests=requests, size=Size(audio_s=s)) for s in AUDIO_S),
    )
