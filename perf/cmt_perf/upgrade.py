"""Upgrades under load, sound and faulty, and the naive way beside them: writes perf/results/upgrade.json.

    python -m cmt_perf.upgrade STATE --answers 20000

STATE/releases holds three releases of one label set whose answers differ. What is written names its conditions.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cmt_perf import faults
from cmt_perf.conditions import conditions, to_text
from cmt_perf.traffic import Asked, Traffic, TrafficPlan, traffic_items
from cmt_perf.upgrade_report import page, plot
from cmt_perf.upgrade_rig import Driver, Rig, Truth, Verdict, rig_on, separation, truth_of, unpin, verdict_on
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import STAGES
from cmt_release.release import Release, open_release, release_numbers
from cmt_server.supervise import stage_processes

#: The releases of a trial differ as much as random weights do, so their drift isn't judged.
UNLIKE = ("--max-flips", "1", "--max-distance", "1", "--max-slowdown", "5")
SHORT = (*UNLIKE, "--canary-s", "2", "--watch-s", "2")
FLIP_MARGIN_S = 0.5
TICK_S = 2
SETTLE_ANSWERS = 60
#: Step -> how many seconds into it the driver is killed.
KILLED_AFTER_S = {
    "recover": 0.0,
    "preflight": 0.1,
    "load": 2.0,
    "golden": 0.3,
    "drift": 0.3,
    "canary": 1.0,
    "flip": 0.1,
    "watch": 1.0,
    "retire": 0.2,
}


@dataclass(frozen=True)
class Trial:
    """What all scenarios share. tolerance: a third of the least distance between two releases' answers."""

    folder: Path
    releases: tuple[Release, Release, Release]
    truth: Truth
    tolerance: float

    @property
    def store(self) -> Path:
        return self.folder / "releases"

    @contextmanager
    def under_load(self, name: str, repository: Path | None = None) -> Iterator[tuple[Rig, Traffic]]:
        """The first release, served and asked, some answers having come."""
        with rig_on(self.releases[0], self.folder, repository) as rig:
            plan = TrafficPlan(rig.server.grpc_url, rig.server.http_url)
            with Traffic(plan, self.folder / f"{name}.jsonl") as traffic:
                traffic.wait_for(SETTLE_ANSWERS)
                yield rig, traffic

    def judged(self, traffic: Traffic) -> tuple[Verdict, Sequence[Asked]]:
        outcome = traffic.stop()
        return verdict_on(outcome, self.truth, self.tolerance), outcome.asked


@dataclass(frozen=True)
class FaultRow:
    """One line of the table: what was done, what happened, what it cost."""

    fault: str
    what_happened: str
    answers: int
    requests_lost: int
    mixed: int
    live_after: int
    expected: int

    @property
    def right(self) -> bool:
        return self.live_after == self.expected and self.mixed == 0


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


def fault_rows(trial: Trial) -> Iterator[FaultRow]:
    """Every fault in turn, each on a server of its own."""
    base = trial.releases[1]
    bad = {
        "corrupt artefact (a file changed after the export)": faults.damaged(trial.store, base),
        "corrupt artefact (right digests, but no engine)": faults.unloadable(trial.store, base),
        "wrong dims (in the manifest)": faults.other_tensors(trial.store, base),
        "wrong dims (in the answers)": faults.changed_answers(trial.store, base, "wrong_dims"),
        "NaN outputs": faults.changed_answers(trial.store, base, "nan"),
        "slow new release (600 ms more)": faults.changed_answers(trial.store, base, "slow"),
        "different label set": faults.other_labels(trial.store, base),
    }
    for name, release in bad.items():
        yield _bad_release(trial, name, release)
    yield from _full_disk(trial)
    yield _server_killed(trial)
    for step, after_s in KILLED_AFTER_S.items():
        yield _driver_killed(trial, step, after_s)
    yield _stage_killed(trial)


def _bad_release(trial: Trial, name: str, release: Release) -> FaultRow:
    options = [*UNLIKE[:-1], "2", "--canary-s", "2", "--watch-s", "2"]
    with trial.under_load("fault") as (rig, traffic):
        output = rig.driver("upgrade", str(release.number), *options).finish()
        return _row(trial, name, output or "NOT NOTICED", rig, traffic, trial.releases[0])


def _full_disk(trial: Trial) -> Iterator[FaultRow]:
    """A file system that a release doesn't fit into, and one that fills up while it is laid down."""
    first, second, _ = trial.releases
    size = sum(first.manifest.sizes[sha] for sha in set(first.manifest.files.values()))
    for name, spare in (("full disk (known before)", size // 4), ("full disk (while it is copied)", 3 * size)):
        with (
            tempfile.TemporaryDirectory(dir=trial.folder) as place,
            _small_disk(Path(place), size + spare),
            trial.under_load("fault", Path(place) / "repository") as (rig, traffic),
        ):
            driver = rig.driver("upgrade", str(second.number), *SHORT)
            for event in driver.steps():
                if (event["step"], event["state"]) == ("load", "started"):
                    _fill(Path(place), leave=size // 8)
            yield _row(trial, name, driver.finish() or "NOT NOTICED", rig, traffic, first)


def _server_killed(trial: Trial) -> FaultRow:
    """SIGKILL of tritonserver while it loads; then the upgrade again."""
    with trial.under_load("fault") as (rig, traffic):
        driver = rig.driver("upgrade", str(trial.releases[1].number), *SHORT)
        for event in driver.steps():
            if (event["step"], event["state"]) == ("load", "started"):
                time.sleep(1.0)
                os.kill(rig.server.pid or 0, signal.SIGKILL)
        output = driver.finish()
        _until(lambda: rig.live() != 0)
        again = rig.driver("upgrade", str(trial.releases[1].number), *SHORT).finish()
        what_happened = f"{output or 'NOT NOTICED'}; {_mended(rig)}; the upgrade again: {again or 'passed'}"
        return _row(trial, "server killed during load", what_happened, rig, traffic, trial.releases[1])


def _driver_killed(trial: Trial, step: str, after_s: float) -> FaultRow:
    """SIGKILL of the driver in a step; then the upgrade again."""
    number = str(trial.releases[1].number)
    with trial.under_load("fault") as (rig, traffic):
        killed = rig.driver("upgrade", number, *SHORT).kill_in(step, after_s)
        left = rig.live()
        again = rig.driver("upgrade", number, *SHORT)
        output = again.finish()
        recovered = next(e["detail"] for e in again.events if (e["step"], e["state"]) == ("recover", "passed"))
        what_happened = (
            f"{'' if killed else 'NOT KILLED; '}release {left} served on; the next: {recovered}; {output or 'passed'}"
        )
        return _row(trial, f"driver killed in {step}", what_happened, rig, traffic, trial.releases[1])


def _stage_killed(trial: Trial) -> FaultRow:
    """SIGKILL of the live text encoder's process; then an upgrade."""
    with trial.under_load("fault") as (rig, traffic):
        version = trial.releases[0].manifest.stages["encode_text"].version
        for process in stage_processes(rig.server.pid or 0)["encode_text", version]:
            os.kill(process, signal.SIGKILL)
        _until(lambda: bool(rig.mends) and rig.live() != 0)
        traffic.wait_for(len(traffic.so_far()) + SETTLE_ANSWERS)
        output = rig.driver("upgrade", str(trial.releases[1].number), *SHORT).finish()
        what_happened = f"{_mended(rig)}; an upgrade after it: {output or 'passed'}"
        return _row(trial, "process of a stage killed under load", what_happened, rig, traffic, trial.releases[1])


def _row(trial: Trial, name: str, output: str, rig: Rig, traffic: Traffic, expected: Release) -> FaultRow:
    traffic.wait_for(len(traffic.so_far()) + SETTLE_ANSWERS)
    live = rig.live()
    verdict, _ = trial.judged(traffic)
    row = FaultRow(
        fault=name,
        what_happened=" ".join(
            output.replace(str(trial.folder), "").replace(rig.server.grpc_url, "the server").split()
        ),
        answers=verdict.answers,
        requests_lost=verdict.errors + verdict.lost,
        mixed=verdict.mixed + verdict.mislabelled,
        live_after=live,
        expected=expected.number,
    )
    print(f"{'ok ' if row.right else 'BAD'} {row}", flush=True)
    return row


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


def _mended(rig: Rig) -> str:
    return "; ".join(mend.split(";")[0][:120] + "; mended" for mend in rig.mends) or "nothing had to be mended"


def _until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(0.2)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own on a folder; needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path, leave: int) -> None:
    free = shutil.disk_usage(folder).free - leave
    if free > 0:
        with (folder / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)


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
    plot(result, out.with_suffix(".png"))
    out.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    typer.run(main)
