"""`make bench-capacity`: the capacity model's predictions beside what the open loop measures, on one server.

The curve is measured first, with closed loops. Then, at shares of saturation, the model says how long requests will
take, and an open loop at that rate shows how long they do.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmt_export.release import open_release
from cmt_perf.capacity import ServiceCurve, latencies_at, percentiles
from cmt_perf.conditions import conditions, to_text
from cmt_perf.service import WARM_UP, Progress, ask, measure
from cmt_perf.traffic import TrafficPlan
from cmt_perf.upgrade_rig import rig_on

LOADS = (0.2, 0.4, 0.6, 0.8)
REQUESTS = 1_500  # at each load
MEASURES = ("p50_ms", "p95_ms", "mean_ms")
RESULT = Path("perf/results/capacity.json")


def trial(curve: ServiceCurve, plan: TrafficPlan, loads: Sequence[float], requests: int, progress: Progress) -> Any:
    """A row for each load: what was predicted, what was measured, and by how much of that they differ."""
    rows = []
    for number, load in enumerate(loads):
        rate = load * curve.saturation
        progress(f"open loop at {load:.0%} of saturation", number / len(loads))
        opened = replace(plan, closed_grpc=0, closed_http=0, open_rate=rate, seed=plan.seed + 1 + number)
        measured = percentiles([one.latency_ms for one in ask(opened, WARM_UP + requests)[WARM_UP:]])
        predicted = percentiles(latencies_at(curve, rate))
        rows.append(
            {"load": load, "rate": round(rate, 2)}
            | {f"predicted_{name}": round(predicted[name], 1) for name in MEASURES}
            | {f"measured_{name}": round(measured[name], 1) for name in MEASURES}
            | {f"off_{name[:-3]}": round(predicted[name] / measured[name] - 1, 3) for name in MEASURES}
        )
    return rows


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

    def told(what: str, done: float) -> None:
        print(f"{done:4.0%} {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder, rig_on(release, Path(folder)) as rig:
        plan = TrafficPlan(
            rig.server.grpc_url, rig.server.http_url, open_protocols=("grpc",), open_canary="off", full=True
        )
        cores = len(os.sched_getaffinity(0))
        curve = measure(plan, told, cores=cores, conditions=conditions(release, traffic=asdict(plan)))
        rows = trial(curve, plan, LOADS, REQUESTS, told)
    worst = max(abs(row["off_p95"]) for row in rows)
    result = {"worst_p95_off": worst, "rows": rows, "curve": json.loads(curve.to_json())}
    out.write_text(to_text(result))
    print(table(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
