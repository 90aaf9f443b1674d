"""Asks systems in turns and keeps every latency: A B, then B A, …, so that a machine that is slower for a while is so
for all of them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmt_perf.bench.scenarios import Scenario
from cmt_perf.bench.systems import System
from cmt_perf.capacity import percentiles
from cmt_perf.processes import cpu_seconds, memory_mb
from cmt_perf.traffic import Traffic
from cmt_pipeline.progress import Progress

WARM_UP, MORE_WARM_UP = 6, 2  # answers of each round that aren't counted; of each request beyond the first in flight
TIMEOUT_S = 900.0
MEMORY_POLL_S = 2.0  # reading a process's pages costs time of its own


@dataclass(frozen=True)
class Round:
    """One turn of a system. latencies_ms: of counted answers; seconds: from the answer before the first of them to the
    last; cpu_s: processor time of the server for each request, peak_mb: its most memory."""

    latencies_ms: tuple[float, ...]
    seconds: float
    errors: int
    cpu_s: float
    peak_mb: float
    first_error: str = ""


@dataclass
class Measured:
    """A system in a scenario: all its rounds."""

    system: str
    scenario: Scenario
    rounds: list[Round] = field(default_factory=list)

    @property
    def latencies_ms(self) -> list[float]:
        return [one for r in self.rounds for one in r.latencies_ms]

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / max(sum(r.seconds for r in self.rounds), 1e-9)

    def figures(self) -> dict[str, float]:
        """Latencies, throughput, processor time and memory; of failed requests only how many."""
        found = percentiles(self.latencies_ms) if self.latencies_ms else {}
        return {name: round(value, 2) for name, value in found.items()} | {
            "requests": len(self.latencies_ms),
            "throughput": round(self.throughput, 3),
            "errors": sum(r.errors for r in self.rounds),
            "cpu_s_per_request": round(float(np.mean([r.cpu_s for r in self.rounds])), 4),
            "peak_mb": round(max(r.peak_mb for r in self.rounds), 1),
        }


def interleaved(
    systems: Sequence[System], scenarios: Sequence[Scenario], rounds: int, progress: Progress, seed: int = 0
) -> list[Measured]:
    """Every system in every scenario, `rounds` turns each; all meet the same requests in a round."""
    found = {(s.name, c.name): Measured(s.name, c) for c in scenarios for s in systems}
    turns = [(number, scenario) for scenario in scenarios for number in range(rounds)]
    for done, (number, scenario) in enumerate(turns):
        for system in systems if number % 2 == 0 else reversed(systems):
            progress(f"{scenario.name}, round {number + 1}, {system.name}", done / len(turns))
            found[system.name, scenario.name].rounds.append(one_round(system, scenario, seed + number))
    return list(found.values())


def one_round(system: System, scenario: Scenario, seed: int) -> Round:
    """One turn of a system in a scenario."""
    needed = WARM_UP + MORE_WARM_UP * (scenario.concurrency - 1) + scenario.requests
    plan = scenario.plan(system.kind, system.url, seed)
    with tempfile.TemporaryDirectory() as folder, _peak_of(system.pid) as peak:
        used = cpu_seconds(system.pid)
        with Traffic(plan, Path(folder) / "asked") as traffic:
            traffic.wait_for(needed, TIMEOUT_S)
            outcome = traffic.stop()
        cpu_s = (cpu_seconds(system.pid) - used) / max(1, outcome.sent)
    before, *asked = sorted(outcome.asked, key=lambda one: one.came_s)[needed - scenario.requests - 1 : needed]
    failed = [one.error for one in asked if one.error]
    return Round(
        tuple(one.latency_ms for one in asked if not one.error),
        asked[-1].came_s - before.came_s,
        len(failed) + outcome.lost,
        cpu_s,
        peak[0],
        failed[0] if failed else "",
    )


@contextlib.contextmanager
def _peak_of(server: int) -> Iterator[list[float]]:
    """The most memory that a server's processes have while the block runs, in MB; looks every MEMORY_POLL_S."""
    peak, over = [memory_mb(server)], threading.Event()

    def look() -> None:
        while not over.wait(MEMORY_POLL_S):
            peak[0] = max(peak[0], memory_mb(server))

    thread = threading.Thread(target=look, name="memory")
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
