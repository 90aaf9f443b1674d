"""`make bench-capacity`: the capacity model's predictions beside what the open loop measures, on one server.

Closed loops measure the curve and open loops show how long requests take at shares of saturation, in turns over several
rounds, so that a machine that is slower for a while is so for both. The model says, from the curve of each round, how
long its requests should have taken.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cmt_perf.capacity import ServiceCurve, latencies_of_runs, percentiles, pooled
from cmt_perf.conditions import conditions, to_text
from cmt_perf.service import WARM_UP, ask, measure
from cmt_perf.traffic import TrafficPlan
from cmt_perf.upgrade_rig import rig_on
from cmt_pipeline.progress import Progress, part_of
from cmt_release.release import open_release

LOADS = (0.2, 0.4, 0.6, 0.8)
ROUNDS = 4
RUNS = 20  # simulated, of each round and load
OPEN_S = 60.0  # of the open loop, at each load and round
MEASURES = ("p50_ms", "p95_ms", "mean_ms")
RESULT = Path("perf/results/capacity.json")


@dataclass
class Load:
    """A share of saturation: latencies in milliseconds over all rounds."""

    share: float
    rate: float
    measured: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        measured, predicted = percentiles(self.measured), percentiles(self.predicted)
        return (
            {"load": self.share, "rate": round(self.rate, 2), "requests": len(self.measured)}
            | {f"predicted_{name}": round(predicted[name], 1) for name in MEASURES}
            | {f"measured_{name}": round(measured[name], 1) for name in MEASURES}
            | {f"off_{name[:-3]}": round(predicted[name] / measured[name] - 1, 3) for name in MEASURES}
        )


def trial(
    plan: TrafficPlan,
    measured: Callable[[Progress], ServiceCurve],
    shares: Sequence[float],
    rounds: int,
    seconds: float,
    progress: Progress,
) -> tuple[ServiceCurve, list[dict[str, float]]]:
    """The curve of all rounds, and a row for each load: predicted, measured, and by how much of that they differ.

    What a round's curve predicts stands against what the same round measured, over runs of the same length.
    """
    curves: list[ServiceCurve] = []
    loads: list[Load] = []
    for number in range(rounds):
        report = part_of(progress, number / rounds, (number + 1) / rounds, f"round {number + 1}")
        curves.append(measured(part_of(report, 0, 0.5)))
        loads = loads or [Load(share, share * curves[0].saturation) for share in shares]
        for load in loads:
            report(f"open loop at {load.rate:.1f}/s", 0.5)
            requests = round(seconds * load.rate)
            opened = replace(plan, closed_grpc=0, closed_http=0, open_rate=load.rate, seed=plan.seed + 1 + number)
            load.measured += [one.latency_ms for one in ask(opened, WARM_UP + requests)[WARM_UP:]]
            load.predicted += list(latencies_of_runs(curves[-1], load.rate, requests, WARM_UP, RUNS))
    return pooled(curves), [load.row() for load in loads]


def table(result: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| load | requests/s | p50 predicted | measured | p95 predicted | measured | off |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        cells = [f"{row['load']:.0%}", f"{row['rate']:.1f}"]
        cells += [f"{row[f'{who}_{m}']:.0f} ms" for m in ("p50_ms", "p95_ms") for who in ("predicted", "measured")]
        lines.append(f"| {' | '.join([*cells, format(row['off_p95'], '+.0%')])} |")
    return "\n".join(lines)


def main(state: Path, out: Path = RESULT) -> None:
    """Serves the newest release of a state folder, measures and predicts, and writes `out`."""
    release = open_release(state / "releases")

    def report(what: str, done: float) -> None:
        print(f"{done:4.0%} {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder, rig_on(release, Path(folder)) as rig:
        plan = TrafficPlan(
            rig.server.grpc_url, rig.server.http_url, open_protocols=("grpc",), open_canary="off", full=True
        )
        cores = len(os.sched_getaffinity(0))
        described = conditions(release, traffic=asdict(plan), rounds=ROUNDS, open_s=OPEN_S)

        def measured(progress: Progress) -> ServiceCurve:
            return measure(plan, progress, cores=cores, conditions=described, answers=200)

        curve, rows = trial(plan, measured, LOADS, ROUNDS, OPEN_S, report)
    worst = max(abs(row["off_p95"]) for row in rows)
    result = {"worst_p95_off": worst, "rows": rows, "curve": json.loads(curve.to_json())}
    out.write_text(to_text(result))
    print(table(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
