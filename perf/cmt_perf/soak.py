"""`make soak`: half an hour of all that a server meets, and what it has lost by then. Writes perf/results/soak.*

Steady traffic over gRPC and HTTP, bad files among it, callers who misbehave (`cmt_perf.misuse`), upgrades one after
another, and kills at random moments: of a stage's process, of a driver amid an upgrade, and, during the first third, of
the server. Memory and descriptors are read while nothing of that is going on; their slope is that of the rest, during
which the server is one process. What Triton 2.51 keeps of each stage's process that was killed (its threads, a request
that it had) is told apart from the slope.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from cmt_perf.conditions import conditions, to_text
from cmt_perf.misuse import Misuse
from cmt_perf.traffic import Asked, Outcome, Traffic, TrafficPlan, traffic_items
from cmt_perf.upgrade_faults import SHORT
from cmt_perf.upgrade_rig import Rig, rig_on, separation, truth_of, verdict_on
from cmt_release.release import Release, open_release, release_numbers
from cmt_server.child import SHARED_MEMORY
from cmt_server.draining import in_flight
from cmt_server.supervise import stage_processes

SERVER_KILLS, KILLED_UNTIL = 4, 1 / 3  # at most, and until which share of the time; a fifth one would be giving up
PAUSE_S = 20.0  # between two events, on average
SETTLE_S = 6.0  # after an event, before memory is read
READ_EVERY_S = 5.0
HEAL_TIMEOUT_S = 120.0
MARGIN_S = 1.0  # around an outage
RESULT = Path("perf/results/soak.json")

#: Half of what the machine can do: overload is measured elsewhere.
PLAN = TrafficPlan("", "", closed_grpc=2, closed_http=2, open_rate=4, pause_s=0.25, bad_share=0.05)


#: What of a reading says when and where, not how much.
TOLD_APART = ("s", "server", "stage_kills")


@dataclass(frozen=True)
class Reading:
    """What is in use at a moment, in seconds since the start. server: its process, another after a kill; stage_kills:
    of its stages' processes, so far."""

    s: float
    server: int
    stage_kills: int
    memory_mb: float
    server_descriptors: int
    stage_descriptors: int
    threads: int
    regions: int
    own_memory_mb: float
    own_descriptors: int


@dataclass
class Soak:
    """What happened. outages: from each kill until all pipelines answered, as [from, to] on CLOCK_MONOTONIC."""

    rig: Rig
    releases: Sequence[Release]
    started: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    kills: int = 0
    server_kills: int = 0

    def run(self, seconds: float, rng: np.random.Generator) -> None:
        upgrades = itertools.cycle([*self.releases[1:], self.releases[0]])
        while (now := self._now()) < seconds:
            self._quiet(min(rng.uniform(0.5, 1.5) * PAUSE_S, seconds - now))
            kinds: list[Callable[[], str]] = [lambda: self._upgrade(next(upgrades))] * 3
            kinds += [lambda: self._driver_killed(next(upgrades), rng), lambda: self._stage_killed(rng)]
            if self._now() < seconds * KILLED_UNTIL and self.server_kills < SERVER_KILLS:
                kinds += [self._server_killed] * 2
            begin, told = self._now(), kinds[rng.integers(len(kinds))]()
            self.events.append({"s": round(begin, 1), "took_s": round(self._now() - begin, 1), "what": told})
            print(self.events[-1], file=sys.stderr, flush=True)

    def _now(self) -> float:
        return time.monotonic() - self.started

    def _quiet(self, seconds: float) -> None:
        """Nothing happens; what is in use is read."""
        deadline = time.monotonic() + seconds
        time.sleep(min(SETTLE_S, seconds))
        while time.monotonic() < deadline:
            self.readings.append(reading(self.rig, self._now(), self.kills - self.server_kills))
            time.sleep(READ_EVERY_S)

    def _upgrade(self, release: Release) -> str:
        said = self.rig.driver("upgrade", str(release.number), *SHORT).finish()
        return f"upgrade to release {release.number}: {said or 'passed'}"

    def _driver_killed(self, release: Release, rng: np.random.Generator) -> str:
        driver = self.rig.driver("upgrade", str(release.number), *SHORT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.process.wait(rng.uniform(1, 10))
        driver.process.kill()
        driver.finish()
        last = driver.events[-1]["step"] if driver.events else "its start"
        return f"driver killed in {last}; then {self._upgrade(release)}"

    def _stage_killed(self, rng: np.random.Generator) -> str:
        running = sorted(stage_processes(self.rig.server.pid or 0).items())
        (stage, _), processes = running[rng.integers(len(running))]
        self._killed(processes[0])
        return f"a process of {stage} killed; {self.rig.mends[-1]}"

    def _server_killed(self) -> str:
        self.server_kills += 1
        self._killed(self.rig.server.pid or 0)
        return f"server killed; {self.rig.mends[-1]}"

    def _killed(self, process: int) -> None:
        """Kills it, and waits until the supervisor has mended it and everything answers."""
        mends, begin = len(self.rig.mends), time.monotonic()
        self.kills += 1
        os.kill(process, signal.SIGKILL)
        while len(self.rig.mends) == mends or self.rig.live() == 0:
            if time.monotonic() > begin + HEAL_TIMEOUT_S:
                raise TimeoutError(f"nothing was mended within {HEAL_TIMEOUT_S:g} s")
            time.sleep(0.2)
        self.outages.append((begin - MARGIN_S, time.monotonic() + MARGIN_S))


def reading(rig: Rig, seconds: float, stage_kills: int) -> Reading:
    server = psutil.Process(rig.server.pid or 0)
    stages = list(itertools.chain.from_iterable(stage_processes(server.pid).values()))
    own = psutil.Process()
    return Reading(
        s=round(seconds, 1),
        server=server.pid,
        stage_kills=stage_kills,
        memory_mb=round(rig.memory_mb(), 1),
        server_descriptors=server.num_fds(),
        stage_descriptors=sum(psutil.Process(stage).num_fds() for stage in stages),
        threads=server.num_threads(),
        regions=sum(name.startswith("cmt-") for name in os.listdir(SHARED_MEMORY)),
        own_memory_mb=round(own.memory_info().rss / 2**20, 1),
        own_descriptors=own.num_fds(),
    )


def slope(readings: Sequence[Reading], name: str) -> dict[str, float]:
    """Growth with each kill of a stage, the median of all; and beside those an hour, by the median of the slopes of all
    pairs (Theil-Sen), with its 95 % interval."""
    from scipy.stats import theilslopes

    values = [getattr(reading, name) for reading in readings]
    steps: dict[int, list[float]] = {0: [], 1: []}  # by how many stages were killed between two readings
    for before, after in pairwise(readings):
        steps.setdefault(after.stage_kills - before.stage_kills, []).append(
            getattr(after, name) - getattr(before, name)
        )
    per_kill = float(np.median(steps[1]) - np.median(steps[0])) if steps[1] else 0.0
    others = [value - per_kill * reading.stage_kills for value, reading in zip(values, readings, strict=True)]
    found = theilslopes(others, [reading.s / 3600 for reading in readings])
    told = {"per_stage_kill": per_kill, "per_hour": found.slope, "low": found.low_slope, "high": found.high_slope}
    return {key: round(float(value), 1) for key, value in told.items()} | {"first": values[0], "last": values[-1]}


def of_one_server(readings: Sequence[Reading]) -> list[Reading]:
    """Those of the server process that was read last."""
    return [reading for reading in readings if reading.server == readings[-1].server]


def failures(outcome: Outcome, outages: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Requests that failed: those that overlap an outage, those refused as too many, those that a client turned away
    itself, since it takes 2 s to look for a server again, and all others."""

    def in_outage(one: Asked) -> bool:
        return any(one.due_s < end and one.came_s > begin for begin, end in outages)

    failed = [one for one in outcome.asked if one.error and not (one.bad and one.error.startswith("InvalidInput"))]
    beyond = [one for one in failed if not in_outage(one)]
    too_many = [one for one in beyond if one.error.startswith("Overloaded")]
    turned_away = [one for one in beyond if one.turned_away and one not in too_many]
    lost = [one for one in beyond if one not in too_many and one not in turned_away]
    return {
        "failed_in_outages": len(failed) - len(beyond),
        "refused_as_too_many": len(too_many),
        "turned_away_after_outages": len(turned_away),
        "first_turned_away": [one.error for one in turned_away[:5]],
        "lost_beyond_kills": len(lost) + outcome.lost,
        "first_lost": [one.error for one in lost[:5]],
    }


def soak(releases: Sequence[Release], folder: Path, state: Path, seconds: float, seed: int) -> dict[str, Any]:
    """What was seen. state: whose releases/ holds the releases; folder: to work in."""
    truth = truth_of(releases, traffic_items(PLAN), folder)
    before = set(os.listdir(SHARED_MEMORY))
    with rig_on(releases[0], folder, state=state) as rig:
        plan = TrafficPlan(**{**asdict(PLAN), "grpc_url": rig.server.grpc_url, "http_url": rig.server.http_url})
        items = traffic_items(plan)
        with (
            Traffic(plan, folder / "soak.jsonl") as traffic,
            Misuse(plan.grpc_url, plan.http_url, items, seed) as misuse,
        ):
            traffic.wait_for(60)
            run = Soak(rig, releases)
            run.run(seconds, np.random.default_rng(seed))
            outcome = traffic.stop()
        left = _left_in_flight(rig)
        mends = list(rig.mends)
    left_regions = sorted(set(os.listdir(SHARED_MEMORY)) - before)
    steady = of_one_server(run.readings)
    verdict = verdict_on(outcome, truth, separation(truth) / 3)
    return {
        "seconds": round(run._now()),
        "answers": verdict.answers,
        "by_release": {str(number): count for number, count in verdict.by_release.items()},
        "refused_bad_files": verdict.refused,
        "wrong": verdict.mixed + verdict.mislabelled,
        **failures(outcome, run.outages),
        "kills": run.kills,
        "outage_s": [round(end - begin - 2 * MARGIN_S, 1) for begin, end in run.outages],
        "misuse": dict(sorted(misuse.counts.items())),
        "left_in_flight": left,
        "left_regions": left_regions,
        "slopes_over_s": round(steady[-1].s - steady[0].s),
        "slopes": {name: slope(steady, name) for name in Reading.__dataclass_fields__ if name not in TOLD_APART},
        "kinds_of_events": dict(
            Counter(event["what"].split(":")[0].split(";")[0].split(" to ")[0] for event in run.events)
        ),
        "mends": mends,
        "events": run.events,
        "readings": [asdict(reading) for reading in run.readings],
    }


def _left_in_flight(rig: Rig, timeout_s: float = 30.0) -> int:
    """Requests that the server still has when nobody asks any more."""
    deadline = time.monotonic() + timeout_s
    options = rig.server.options
    while True:
        left = in_flight(options.work, "127.0.0.1", rig.server.metrics_port).requests
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def plot(result: dict[str, Any], path: Path) -> None:
    """Memory and descriptors over the time, with the events."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    readings = result["readings"]
    minutes = [reading["s"] / 60 for reading in readings]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(10, 5.5), sharex=True, layout="constrained")
    upper.plot(minutes, [reading["memory_mb"] for reading in readings], ".-", label="server and stages")
    upper.set(ylabel="memory, MiB (PSS)", ylim=(0, None))
    for name, label in (
        ("server_descriptors", "tritonserver"),
        ("stage_descriptors", "stages"),
        ("own_descriptors", "supervisor"),
    ):
        lower.plot(minutes, [reading[name] for reading in readings], ".-", label=label)
    lower.set(xlabel="minutes", ylabel="open descriptors", ylim=(0, None))
    colours = {"upgrade": "tab:green", "driver": "tab:orange", "a process": "tab:purple", "server": "tab:red"}
    for axes in (upper, lower):
        for event in result["events"]:
            colour = next(value for key, value in colours.items() if event["what"].startswith(key))
            axes.axvspan(event["s"] / 60, (event["s"] + event["took_s"]) / 60, color=colour, alpha=0.2, lw=0)
        axes.legend(frameon=False, loc="lower right")
        axes.grid(alpha=0.3)
    where = result["conditions"]
    kinds = "upgrades (green), driver (orange), stage (purple), server (red) killed"
    figure.suptitle(f"{where['cpu']}, {where['cores']} cores: {kinds}")
    figure.savefig(path, dpi=110)


def main(
    state: Annotated[Path, typer.Argument(help="Folder whose releases/ holds three releases to go between.")],
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of what happens when.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULT,
) -> None:
    """Half an hour of all that a server meets."""
    with tempfile.TemporaryDirectory(prefix="cmt-soak-") as name:
        shutil.copytree(state / "releases", Path(name, "releases"), ignore=shutil.ignore_patterns(".*"))
        releases = [open_release(Path(name, "releases"), number) for number in release_numbers(state / "releases")[:3]]
        told = conditions(release=releases[0], traffic=asdict(PLAN), minutes=minutes, seed=seed)
        result = {"conditions": told} | soak(releases, Path(name), Path(name), 60 * minutes, seed)
    out.write_text(to_text(result))
    plot(result, out.with_suffix(".png"))
    print({key: value for key, value in result.items() if key not in ("readings", "events")})


if __name__ == "__main__":
    typer.run(main)
