"""Where the time of a request goes, from Triton's trace of it: which branch was critical, and what stood in between.

Branches run side by side, so their times are never added up: only those of the critical path are, which is
`preprocess`, the encoder that ended last, and `fuse`. Trace format: Triton's user guide, "Trace", mode `triton`, level
TIMESTAMPS; all times are of one clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STARTS, ENDS = ("preprocess", "check"), "fuse"
NS_PER_MS = 1e6


@dataclass(frozen=True)
class Step:
    """Milliseconds since the request arrived: queued from, computed from and to."""

    queued: float
    started: float
    ended: float

    @property
    def compute_ms(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True)
class Traced:
    """One request in the server. critical: the encoder that ended last; slack_ms: how much later each other could
    have ended without anybody waiting; overhead_ms: the whole less the compute of the critical path."""

    total_ms: float
    steps: Mapping[str, Step]

    @property
    def critical(self) -> str:
        return max(self._encoders, key=lambda name: self.steps[name].ended)

    @property
    def slack_ms(self) -> dict[str, float]:
        last = self.steps[self.critical].ended
        return {name: last - self.steps[name].ended for name in self._encoders}

    @property
    def overhead_ms(self) -> float:
        path = (*(name for name in STARTS if name in self.steps), self.critical, ENDS)
        return self.total_ms - sum(self.steps[name].compute_ms for name in path)

    @property
    def _encoders(self) -> list[str]:
        return [name for name in self.steps if name not in (*STARTS, ENDS)]


def read_trace(path: Path, pipeline: str = "emotion") -> list[Traced]:
    """The requests of a pipeline that were answered, in the order of their arrival.

    ValueError for a file that isn't a trace.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} isn't a trace of Triton ({error}); trace again") from None
    models: dict[int, tuple[str, int | None]] = {}
    times: dict[int, dict[str, int]] = defaultdict(dict)
    for row in rows:
        if "model_name" in row:
            models[row["id"]] = (row["model_name"], row.get("parent_id"))
        for stamp in row.get("timestamps", ()):
            times[row["id"]][stamp["name"]] = stamp["ns"]
    children: dict[int, dict[str, int]] = defaultdict(dict)
    for identity, (name, parent) in models.items():
        if parent is not None:
            children[parent][name] = identity
    found = [
        _traced(times[identity], {step: times[child] for step, child in children[identity].items()})
        for identity, (name, _) in models.items()
        if name == pipeline and ENDS in children[identity] and "REQUEST_END" in times[identity]
    ]
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _traced(whole: Mapping[str, int], steps: Mapping[str, Mapping[str, int]]) -> tuple[int, Traced]:
    start = whole["REQUEST_START"]

    def ms(stamps: Mapping[str, int], name: str) -> float:
        return (stamps[name] - start) / NS_PER_MS

    timed = {
        name: Step(ms(stamps, "QUEUE_START"), ms(stamps, "COMPUTE_START"), ms(stamps, "COMPUTE_END"))
        for name, stamps in steps.items()
    }
    return start, Traced(ms(whole, "REQUEST_END"), timed)


def attribution(traced: Sequence[Traced], end_to_end_ms: Sequence[float]) -> dict[str, Any]:
    """Medians over requests. end_to_end_ms: of the same requests as their client saw them."""
    names = list(traced[0].steps)
    critical = [one.critical for one in traced]
    server_overhead = float(np.median([one.overhead_ms for one in traced]))
    outside = float(np.median(end_to_end_ms)) - float(np.median([one.total_ms for one in traced]))
    return {
        "requests": len(traced),
        "end_to_end_ms": _median(end_to_end_ms),
        "in_server_ms": _median([one.total_ms for one in traced]),
        "overhead_in_server_ms": round(server_overhead, 2),
        "overhead_ms": round(server_overhead + outside, 2),
        "critical": {name: round(critical.count(name) / len(critical), 3) for name in sorted(set(critical))},
        "stages": {
            name: {
                "queued_ms": _median([one.steps[name].started - one.steps[name].queued for one in traced]),
                "compute_ms": _median([one.steps[name].compute_ms for one in traced]),
                "started_at_ms": _median([one.steps[name].started for one in traced]),
                "ended_at_ms": _median([one.steps[name].ended for one in traced]),
                **({"slack_ms": _median([one.slack_ms[name] for one in traced])} if name in traced[0].slack_ms else {}),
            }
            for name in names
        },
    }


def _median(values: Sequence[float]) -> float:
    return round(float(np.median(values)), 2)
