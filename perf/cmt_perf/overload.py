"""`make bench-overload`: what a server does at 0.5 to 4 times what it can answer. Writes perf/results/overload.*

Saturation is measured on the spot by closed loops; then an open loop sends at each rate, in turns over several rounds,
so that a machine that is slower for a while is so for all of them. The load generator shares the server's cores, and is
as cheap as it can be: one process, raw gRPC, requests encoded beforehand (`cmt_perf.storm`).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client.requests import from_item
from cmt_perf.conditions import conditions, to_text
from cmt_perf.storm import Fate, Reply, Storm, encoded
from cmt_perf.traffic import TrafficPlan, traffic_items
from cmt_perf.upgrade_rig import rig_on
from cmt_pipeline.limits import DEFAULT_LIMITS
from cmt_release.release import open_release

SHARES = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0)
LOOPS = (4, 8, 12)  # closed loops, too few to be refused; the best of them is saturation
ROUNDS = 3
SECONDS = 10.0  # of the open loop, at each share and round
CLOSED_S = 6.0
WARM_UP_S = 5.0
TIMEOUT_S = 5.0  # what a caller waits
RESULT = Path("perf/results/overload.json")
PLOT = RESULT.with_suffix(".png")

#: What was asked for: share of saturation's goodput at 2x and 4x, and p99 of what is answered there against 0.8x.
LEAST_GOODPUT, MOST_P99, REFUSED_WITHIN_MS = 0.95, 3.0, 50.0


@dataclass
class Load:
    """A share of saturation, over all rounds. next_ms: latency of a request alone right after the storm."""

    share: float
    saturations: list[float] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    next_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def row(self, seconds: float) -> dict[str, float]:
        """seconds: of each round."""
        duration = seconds * len(self.saturations)
        count = {fate: sum(reply.fate == fate for reply in self.replies) for fate in ("answered", "refused")}
        saturation = float(np.mean(self.saturations))
        goodput = count["answered"] / duration
        return {
            "share": self.share,
            "offered_per_s": round(len(self.replies) / duration, 1),
            "goodput_per_s": round(goodput, 1),
            "goodput_of_saturation": round(goodput / saturation, 3),
            "p50_ms": _percentile(self.replies, "answered", 50),
            "p99_ms": _percentile(self.replies, "answered", 99),
            "refused": round(count["refused"] / len(self.replies), 3),
            "refusal_p50_ms": _percentile(self.replies, "refused", 50),
            "refusal_p99_ms": _percentile(self.replies, "refused", 99),
            "late": sum(reply.fate == "late" for reply in self.replies),
            "failed": sum(reply.fate == "failed" for reply in self.replies),
            "next_ms": round(max(self.next_ms), 1),
            "memory_mb": round(max(self.memory_mb)),
        }


def trial(
    storm: Storm,
    memory_mb: Callable[[], float],
    say: Callable[[str], None],
    *,
    shares: Sequence[float] = SHARES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    closed_s: float = CLOSED_S,
) -> dict[str, Any]:
    """Saturation, and a row for each share of it."""
    storm.closed(LOOPS[0], WARM_UP_S)
    before_mb = memory_mb()
    loads = [Load(share) for share in shares]
    for number in range(rounds):
        saturation = max(_rate(storm.closed(loops, closed_s)) for loops in LOOPS)
        for load in loads:
            say(f"round {number + 1} of {rounds}: {load.share:g} of {saturation:.1f}/s")
            load.replies += storm.open(load.share * saturation, seconds, seed=number)
            load.saturations.append(saturation)
            load.next_ms.append(storm.one().latency_ms)
            load.memory_mb.append(memory_mb())
    saturations = loads[0].saturations
    return {
        "saturation_per_s": round(float(np.mean(saturations)), 1),
        "saturations_per_s": [round(rate, 1) for rate in saturations],
        "memory_before_mb": round(before_mb),
        "memory_after_mb": round(memory_mb()),
        "rows": [load.row(seconds) for load in loads],
    }


def verdict(result: Mapping[str, Any]) -> dict[str, bool]:
    """What was asked for, and whether it was seen."""
    rows = {row["share"]: row for row in result["rows"]}
    storms = [rows[2.0], rows[4.0]]
    return {
        "goodput_at_2x_and_4x": all(row["goodput_of_saturation"] >= LEAST_GOODPUT for row in storms),
        "p99_at_2x_and_4x": all(row["p99_ms"] <= MOST_P99 * rows[0.8]["p99_ms"] for row in storms),
        "refusals_within_50_ms": all(row["refusal_p99_ms"] <= REFUSED_WITHIN_MS for row in storms),
        "none_late_or_failed": not any(row["late"] + row["failed"] for row in storms),
    }


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Goodput and latencies over the load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["rows"]
    shares = [row["share"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(shares, [row["goodput_of_saturation"] for row in rows], "o-", label="answered")
    left.plot(shares, [row["refused"] * row["share"] for row in rows], "o--", color="tab:red", label="refused")
    left.plot(shares, shares, ":", color="gray", label="offered")
    left.set(xlabel="offered load, times saturation", ylabel="requests, times saturation", ylim=(0, None))
    for name, label in (("p99_ms", "answered, p99"), ("p50_ms", "answered, p50"), ("refusal_p99_ms", "refused, p99")):
        right.plot(shares, [row[name] or np.nan for row in rows], "o-", label=label)
    right.set(xlabel="offered load, times saturation", ylabel="latency, ms", yscale="log")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{result['conditions']['cpu']}, {result['conditions']['cores']} cores: overload")
    figure.savefig(path, dpi=110)


def _rate(replies: Sequence[Reply]) -> float:
    """Answers a second of closed loops, from the first to the last."""
    came = [reply.came_s for reply in replies if reply.fate == "answered"]
    return (len(came) - 1) / (max(came) - min(came))


def _percentile(replies: Sequence[Reply], fate: Fate, percent: float) -> float:
    latencies = [reply.latency_ms for reply in replies if reply.fate == fate]
    return round(float(np.percentile(latencies, percent)), 1) if latencies else 0.0


def main(state: Path, out: Path = RESULT) -> None:
    """Serves the newest release of a state folder, measures, and writes `out` and its plot."""
    release = open_release(state / "releases")
    items = traffic_items(TrafficPlan("", "", full=True))
    requests = [encoded(from_item(item, DEFAULT_LIMITS), TIMEOUT_S) for item in items]
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:4.0f} s {what}", file=sys.stderr, flush=True)

    with (
        tempfile.TemporaryDirectory() as folder,
        rig_on(release, Path(folder)) as rig,
        Storm(rig.server.grpc_url.removeprefix("grpc://"), requests, TIMEOUT_S) as storm,
    ):
        told = conditions(release, seconds=SECONDS, rounds=ROUNDS, timeout_s=TIMEOUT_S, loops=LOOPS)
        result = {"conditions": told} | trial(storm, rig.memory_mb, say)
    result |= {"seen": verdict(result)}
    out.write_text(to_text(result))
    plot(result, out.with_suffix(".png"))
    print(to_text(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
