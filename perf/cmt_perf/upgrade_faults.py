"""Upgrades with faults: each on a server of its own, under load, and what became of the requests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cmt_perf import faults
from cmt_perf.relay import NthLoads, Relay
from cmt_perf.traffic import Asked, Traffic, TrafficPlan
from cmt_perf.upgrade_rig import Rig, Truth, Verdict, rig_on, verdict_on
from cmt_pipeline.pipelines import PIPELINES
from cmt_release.release import Release
from cmt_server.supervise import stage_processes

#: The releases of a trial differ as much as random weights do, so their drift isn't judged.
UNLIKE = ("--max-flips", "1", "--max-distance", "1", "--max-slowdown", "5")
SHORT = (*UNLIKE, "--canary-s", "2", "--watch-s", "2")
BARE = (*UNLIKE, "--canary-s", "0", "--watch-s", "0", "--samples", "7")
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
    def under_load(
        self, name: str, repository: Path | None = None, live: Release | None = None, bad_share: float = 0.0
    ) -> Iterator[tuple[Rig, Traffic]]:
        """The first release, or another, served and asked, some answers having come."""
        with rig_on(live or self.releases[0], self.folder, repository) as rig:
            plan = TrafficPlan(rig.server.grpc_url, rig.server.http_url, bad_share=bad_share)
            with Traffic(plan, self.folder / f"{name}.jsonl") as traffic:
                traffic.wait_for(SETTLE_ANSWERS)
                yield rig, traffic

    def judged(self, traffic: Traffic) -> tuple[Verdict, Sequence[Asked]]:
        outcome = traffic.stop()
        return verdict_on(outcome, self.truth, self.tolerance), outcome.asked


@dataclass(frozen=True)
class FaultRow:
    """One line of the table: what was done, what happened, what it cost. turned_away: while no server was there."""

    fault: str
    what_happened: str
    answers: int
    requests_lost: int
    turned_away: int
    mixed: int
    live_after: int
    expected: int

    @property
    def right(self) -> bool:
        said = ("NOT NOTICED", "NOT WHOLE", "NOT KILLED")
        return self.live_after == self.expected and self.mixed == 0 and not any(no in self.what_happened for no in said)


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
    for step in ("flip", "watch", "retire"):
        yield _server_killed_later(trial, step)
    yield from _connections_lost(trial)
    yield _broken_live(trial)
    yield _live_traffic_failing(trial)
    yield _bad_files(trial)
    yield _two_releases_behind_a_balancer(trial)
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


def _server_killed_later(trial: Trial, step: str) -> FaultRow:
    """SIGKILL of tritonserver once a step has begun; after the flip its end, for it takes no longer than a kill."""
    first, second, _ = trial.releases
    with trial.under_load("fault") as (rig, traffic):
        driver = rig.driver("upgrade", str(second.number), *SHORT)
        state = "passed" if step == "flip" else "started"
        said = driver.after(step, state, lambda: os.kill(rig.server.pid or 0, signal.SIGKILL))
        _until(lambda: rig.live() != 0)
        expected = first if said else second
        told = f"{said or 'passed'}; {_mended(rig)}; {_proof(rig, expected)}"
        when = "after the flip" if step == "flip" else f"in {step}"
        return _row(trial, f"server killed {when}", told, rig, traffic, expected)


def _connections_lost(trial: Trial) -> Iterator[FaultRow]:
    """Of the loads of pipelines, one after another: in the flip, and in the way back that a first lost one leads to."""
    first, second, _ = trial.releases
    for name, earlier in (("flip", ()), ("way back", (1,))):
        with trial.under_load("fault") as (rig, traffic):
            wrong = []
            for number in range(1, len(PIPELINES) + 1):
                lost = NthLoads(*earlier, *(done + number for done in earlier or (0,)))
                with Relay([rig.server.http_url], lost) as relay:
                    driver = rig.driver("upgrade", str(second.number), *BARE, via=relay.url)
                    said = driver.finish()
                wrong += [] if said.startswith("StepFailed: flip") else [f"load {number}: {said or 'passed'}"]
                wrong += rig.proven(first)
                print(f"   {name}, load {number}: {wrong or 'whole'}", flush=True)
            told = f"{len(PIPELINES)} upgrades, each led back; {'; '.join(wrong) or _proof(rig, first)}"
            yield _row(
                trial, f"connection lost at each of the {len(PIPELINES)} loads of a {name}", told, rig, traffic, first
            )


def _broken_live(trial: Trial) -> FaultRow:
    """A live release that answers NaN is left for a sound one, whatever it answers."""
    second = trial.releases[1]
    broken = faults.changed_answers(trial.store, trial.releases[0], "nan")
    with trial.under_load("fault", live=broken) as (rig, traffic):
        driver = rig.driver("upgrade", str(second.number), *SHORT)
        said = driver.finish() or driver.detail("preflight")
        return _row(trial, "live release broken (NaN)", f"{said}; {_proof(rig, second)}", rig, traffic, second)


def _live_traffic_failing(trial: Trial) -> FaultRow:
    """A release that passes every check, and fails live requests a while later."""
    first, second, _ = trial.releases
    worn = faults.wears_out(trial.store, second, 800)
    known = replace(trial, truth={**trial.truth, worn.number: trial.truth[second.number]})
    with trial.under_load("fault") as (rig, traffic):
        said = rig.driver("upgrade", str(worn.number), *UNLIKE, "--canary-s", "2", "--watch-s", "30").finish()
        told = f"{said or 'NOT NOTICED'}; {_proof(rig, first)}"
        return _row(known, "live requests fail once the release has all traffic", told, rig, traffic, first)


def _bad_files(trial: Trial) -> FaultRow:
    """Refusals are nobody's fault but their callers'."""
    second = trial.releases[1]
    with trial.under_load("fault", bad_share=0.03) as (rig, traffic):
        driver = rig.driver("upgrade", str(second.number), *UNLIKE, "--canary-s", "4", "--watch-s", "8")
        said = driver.finish() or driver.detail("watch")
        return _row(trial, "3 % of the files can't be read", said, rig, traffic, second)


def _two_releases_behind_a_balancer(trial: Trial) -> FaultRow:
    """Two servers that serve different releases, each request sent to the other one in turn, while one is upgraded."""
    first, second, third = trial.releases
    with (
        rig_on(first, trial.folder / "a", state=trial.folder) as rig,
        rig_on(third, trial.folder / "b", state=trial.folder) as other,
        Relay([rig.server.http_url, other.server.http_url]) as relay,
    ):
        plan = TrafficPlan(relay.url, relay.url, closed_grpc=0, closed_http=3, open_protocols=("http",))
        with Traffic(plan, trial.folder / "fault.jsonl") as traffic:
            traffic.wait_for(SETTLE_ANSWERS)
            said = rig.driver("upgrade", str(second.number), *SHORT).finish()
            told = f"{said or 'passed'}; {_proof(rig, second)}; {_proof(other, third)}"
            return _row(trial, "two releases behind a balancer, one upgraded", told, rig, traffic, second)


def _proof(rig: Rig, release: Release) -> str:
    faults = rig.proven(release)
    return (
        f"NOT WHOLE: {'; '.join(faults)}" if faults else f"golden requests: release {release.number} at every pipeline"
    )


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
        requests_lost=verdict.errors - verdict.turned_away + verdict.lost,
        turned_away=verdict.turned_away,
        mixed=verdict.mixed + verdict.mislabelled,
        live_after=live,
        expected=expected.number,
    )
    print(f"{'ok ' if row.right else 'BAD'} {row}", flush=True)
    return row


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
