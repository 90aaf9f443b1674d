"""Stopping a server under load: what becomes of every request, after none, one or several upgrades.

    python -m cmt_perf.drain_trial STATE --upgrades 0 1 3 --loops 400 --runs 20 --output perf/results/drain.json

Closed loops, half of them over gRPC and half over HTTP, ask without retrying while the server is told to stop. A
request sent before that moment must be answered; one sent later is answered or refused in a way that clients try again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cmt_perf.conditions import conditions
from cmt_perf.traffic import Asked, Traffic, TrafficPlan
from cmt_perf.upgrade_rig import Rig, rig_on
from cmt_pipeline.limits import Limits
from cmt_release.release import Release, open_release
from cmt_server.repository import InstallOptions

QUICK_UPGRADE = (
    "--samples",
    "7",
    "--canary-s",
    "0",
    "--watch-s",
    "0",
    "--max-flips",
    "1",
    "--max-distance",
    "1",
    "--max-slowdown",
    "1000",
)
#: What a client tries again.
TRIED_AGAIN = ("ServerUnavailable", "Overloaded")
#: Admission would keep most of the loops out: without it, hundreds of requests are in flight.
ALL_LET_IN = InstallOptions(Limits(max_wait_s=600.0))
ROUNDS = 2  # answers of each loop before the server is told to stop


@dataclass(frozen=True)
class Drained:
    """What one stop did. in_flight: sent before it and answered after; lost: sent before it, let in, and not answered;
    refused: not let in, in a way that clients try again; failed: later ones that they wouldn't."""

    upgrades: int
    loops: int
    seconds: float
    in_flight: int
    lost: int
    refused: int
    failed: int
    first_errors: tuple[str, ...]


def drained(releases: Sequence[Release], upgrades: int, loops: int, folder: Path, state: Path) -> Drained:
    """Serves the first release, upgrades to and fro, and stops under load."""
    with rig_on(releases[0], folder, state=state, install=ALL_LET_IN) as rig:
        for _, release in zip(range(upgrades), itertools.cycle([*releases[1:], releases[0]]), strict=False):
            _upgraded(rig, release)
        plan = TrafficPlan(
            rig.server.grpc_url, rig.server.http_url, loops // 2, loops - loops // 2, open_rate=0, audio_s=0.5
        )
        with Traffic(plan, folder / "traffic.jsonl") as traffic:
            traffic.wait_for(ROUNDS * loops)
            rig.unwatch()
            before = time.monotonic()
            rig.server.stop()
            seconds = time.monotonic() - before
            asked = traffic.stop().asked
    return judged(asked, before, upgrades, loops, seconds)


def _upgraded(rig: Rig, release: Release) -> None:
    if told := rig.driver("upgrade", str(release.number), *QUICK_UPGRADE).finish():
        raise RuntimeError(f"the upgrade to release {release.number} failed: {told}")


def judged(asked: Sequence[Asked], before: float, upgrades: int, loops: int, seconds: float) -> Drained:
    errors = [one for one in asked if one.error]
    lost = [one for one in errors if one.due_s < before and not one.turned_away]
    failed = [one for one in errors if one.due_s >= before and not one.error.startswith(TRIED_AGAIN)]
    return Drained(
        upgrades,
        loops,
        round(seconds, 2),
        in_flight=sum(one.due_s < before <= one.came_s and not one.error for one in asked),
        lost=len(lost),
        refused=len(errors) - len(lost) - len(failed),
        failed=len(failed),
        first_errors=tuple(dict.fromkeys(one.error for one in (*lost, *failed)))[:3],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--upgrades", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--loops", type=int, default=400)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("perf/results/drain.json"))
    given = parser.parse_args()
    releases = [open_release(given.state / "releases", number) for number in (1, 2)]
    results = []
    for run, upgrades in itertools.product(range(given.runs), given.upgrades):
        with tempfile.TemporaryDirectory() as folder:
            result = drained(releases, upgrades, given.loops, Path(folder), given.state)
        results.append(asdict(result))
        print(run, json.dumps(results[-1]), flush=True)
    given.output.write_text(
        json.dumps({"conditions": conditions(release=releases[0]), "runs": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
