"""Upgrades under load, sound and faulty, and the naive way beside them: writes perf/results/upgrade.json.

    python -m cmt_perf.upgrade STATE --answers 20000

STATE/releases holds three releases of one label set whose answers differ. What is written names its conditions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cmt_perf.conditions import conditions, to_text
from cmt_perf.traffic import Asked, TrafficPlan, traffic_items
from cmt_perf.upgrade_faults import SETTLE_ANSWERS, UNLIKE, Trial, fault_rows
from cmt_perf.upgrade_report import page, plot
from cmt_perf.upgrade_rig import Driver, Verdict, separation, truth_of, unpin
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import STAGES
from cmt_release.release import open_release, release_numbers

FLIP_MARGIN_S = 0.5
TICK_S = 2


def sustained(trial: Trial, answers: int) -> dict[str, Any]:
    """Upgrade to the second release, back, and on to the third, under load."""
    first, second, third = (str(release.number) for release in trial.releases)
    with trial.under_load("sustained") as (rig, traffic):
        traffic.wait_for(answers // 4, 3600)
        memory = {"one_release_mb": rig.memory_mb()}
        begin = time.monotonic()
        drivers = [_done(rig.driver("upgrade", second, "--keep", *UNLIKE))]
        memory["two_releases_mb"] = rig.memory_mb()
        traffic.wait_for(answers // 2, 3600)
        drivers.append(_done(rig.driver("rollback")))
        traffic.wait_for(3 * answers // 4, 3600)
        drivers.append(_done(rig.driver("upgrade", third, *UNLIKE)))
        memory["after_retire_mb"] = rig.memory_mb()
        traffic.wait_for(answers, 3600)
        live, mends = rig.live(), list(rig.mends)
        verdict, asked = trial.judged(traffic)
    flips = [_window(driver, "rollback" if number == 1 else "flip") for number, driver in enumerate(drivers)]
    upgrades = [(d.moment("load", "started"), d.moment("retire", "passed")) for d in (drivers[0], drivers[2])]
    before = [a for a in asked if a.came_s < begin]
    return {
        "path": f"{first} -> {second} -> rollback to {first} -> {third}",
        **_counts(verdict),
        "live_after": live,
        "mends": mends,
        "flip_s": [round(end - start, 3) for start, end in flips],
        **_latencies(before, asked, flips, upgrades),
        "timeline": _timeline(asked),
        "steps": [_steps(driver, asked[0].due_s) for driver in drivers],
        "memory": {name: round(value, 1) for name, value in memory.items()},
    }


def naive(trial: Trial) -> dict[str, Any]:
    """The same traffic while stages are replaced one by one beneath pipelines whose steps take the latest version."""
    with trial.under_load("naive") as (rig, traffic):
        repository, control = rig.repository, rig.server.control
        unpin(repository)
        for name in PIPELINES:
            control.load(name)
        traffic.wait_for(len(traffic.so_far()) + SETTLE_ANSWERS)
        repository.add(trial.releases[1])
        repository.load_only([trial.releases[1].number])
        for stage in STAGES:
            control.load(stage)
        traffic.wait_for(len(traffic.so_far()) + SETTLE_ANSWERS)
        return _counts(trial.judged(traffic)[0])


def _counts(verdict: Verdict) -> dict[str, Any]:
    values = asdict(verdict)
    values["by_release"] = {str(release): count for release, count in verdict.by_release.items()}
    return values


def _latencies(
    before: Sequence[Asked],
    asked: Sequence[Asked],
    flips: Sequence[tuple[float, float]],
    upgrades: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """p99 of requests that were under way during a flip, and during whole upgrades, over that of the time before."""

    def p99(chosen: Sequence[Asked]) -> float:
        return float(np.percentile([a.latency_ms for a in chosen], 99)) if chosen else float("nan")

    def within(windows: Sequence[tuple[float, float]]) -> list[Asked]:
        return [a for a in asked if any(a.due_s <= end and a.came_s >= start for start, end in windows)]

    during_flip, during_upgrade = within(flips), within(upgrades)
    return {
        "p50_before_ms": round(float(np.median([a.latency_ms for a in before])), 1),
        "p99_before_ms": round(p99(before), 1),
        "p99_flip_ms": round(p99(during_flip), 1),
        "p99_ratio": round(p99(during_flip) / p99(before), 3),
        "requests_during_flips": len(during_flip),
        "p99_ratio_whole_upgrade": round(p99(during_upgrade) / p99(before), 3),
        "requests_during_upgrades": len(during_upgrade),
    }


def _timeline(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """For each TICK_S since the first request: answers by release, median and p99 latency."""
    start = asked[0].due_s
    ticks: dict[int, list[Asked]] = {}
    for one in asked:
        ticks.setdefault(int((one.came_s - start) / TICK_S), []).append(one)
    return [
        {
            "s": tick * TICK_S,
            "answers": dict(sorted(Counter(str(a.release) for a in found if not a.error).items())),
            "errors": sum(bool(a.error) for a in found),
            "p50_ms": round(float(np.percentile([a.latency_ms for a in found], 50)), 1),
            "p99_ms": round(float(np.percentile([a.latency_ms for a in found], 99)), 1),
        }
        for tick, found in sorted(ticks.items())
    ]


def _steps(driver: Driver, start: float) -> dict[str, list[float]]:
    """Step -> [begin, end] in seconds since the first request."""
    passed = [event for event in driver.events if event["state"] == "passed"]
    return {e["step"]: [round(e["at"] - e["seconds"] - start, 2), round(e["at"] - start, 2)] for e in passed}


def _window(driver: Driver, step: str) -> tuple[float, float]:
    return driver.moment(step, "started") - FLIP_MARGIN_S, driver.moment(step, "passed") + FLIP_MARGIN_S


def _done(driver: Driver) -> Driver:
    if output := driver.finish():
        raise RuntimeError(f"the upgrade failed: {output}")
    return driver


def main(
    state: Annotated[Path, typer.Argument(help="Folder whose releases/ holds three releases to go between.")],
    answers: Annotated[int, typer.Option(help="Answers under sustained load.")] = 20_000,
    with_faults: Annotated[bool, typer.Option("--faults/--no-faults")] = True,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("perf/results/upgrade.json"),
) -> None:
    """Measures an upgrade under load, with faults, and the naive way."""
    with tempfile.TemporaryDirectory(prefix="cmt-upgrade-") as name:
        folder = Path(name)
        shutil.copytree(state / "releases", folder / "releases", ignore=shutil.ignore_patterns(".*"))
        numbers = release_numbers(folder / "releases")[:3]
        releases = tuple(open_release(folder / "releases", number) for number in numbers)
        plan = TrafficPlan("", "")
        truth = truth_of(releases, traffic_items(plan), folder)
        trial = Trial(folder, releases, truth, separation(truth) / 3)  # type: ignore[arg-type]
        result: dict[str, Any] = {"conditions": conditions(release=releases[0], traffic=asdict(plan))}
        result |= sustained(trial, answers)
        print({key: value for key, value in result.items() if key not in ("timeline", "steps")}, flush=True)
        result["naive"] = naive(trial)
        print(result["naive"], flush=True)
        rows = list(fault_rows(trial)) if with_faults else []
        result["faults"] = [{**asdict(row), "right": row.right} for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_text(result))
    result = json.loads(out.read_text())  # so that the page is that of the file
    plot(result, out.with_suffix(".png"))
    out.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    typer.run(main)
