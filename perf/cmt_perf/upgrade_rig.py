"""What an upgrade is measured with: a supervised server, a driver in a process of its own, and the truth.

The truth is what each release answers when it is served alone. An answer under traffic is sound if the release that
it names gives just that; one that no release gives was made by two of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client import EmotionClient, EmotionError, Item
from cmt_perf.processes import memory_mb
from cmt_perf.traffic import Asked, Outcome, TrafficPlan, traffic_items
from cmt_pipeline.constants import TOKEN_VARIABLE, TRITON_CONFIG_FILE
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.triton_config import from_pbtxt, to_pbtxt
from cmt_release.release import Release
from cmt_server.repository import InstallOptions, Repository
from cmt_server.server import ServerOptions, TritonServer
from cmt_server.supervise import Supervisor

LOOK_S = 0.3
DRIVER_TIMEOUT_S = 300.0

#: One request for each pipeline that takes files.
EACH = traffic_items(TrafficPlan("", "", items=len(SUBSETS)))

#: Release -> the probabilities that it gives for each request of the traffic.
Truth = dict[int, list[tuple[float, ...]]]


@dataclass
class Rig:
    """A server on a release, looked after as `cmt serve` does. mends: what the supervisor had to do."""

    server: TritonServer
    state: Path
    mends: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    def watch(self) -> None:
        """Lets a supervisor look after the server, on a thread of its own, until `end`."""
        self._watcher = threading.Thread(target=self._look, name="supervisor")
        self._watcher.start()

    def unwatch(self) -> None:
        """Nobody looks after the server any more."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()

    def end(self) -> None:
        """Stops the server as Ctrl-C does."""
        self.unwatch()
        self.server.stop()

    def _look(self) -> None:
        supervisor = Supervisor(self.server, self.mends.append)
        while not self._over.wait(LOOK_S):
            supervisor.look()

    @property
    def repository(self) -> Repository:
        return Repository(self.server.options.repository)

    def driver(self, verb: str, *arguments: str, via: str | None = None) -> Driver:
        """`cmt upgrade` or `cmt rollback` on this server. via: URL of a relay in front of it."""
        return Driver(self, verb, arguments, via)

    def proven(self, release: Release) -> list[str]:
        """What speaks against a release at some pipeline; empty if golden requests show that it serves them all.

        A driver asks them, which is to lead the server where it is already.
        """
        if (live := self.live()) != release.number:
            return [f"got release {live or 'none'} live; expected release {release.number}"]
        said = self.driver("upgrade", str(release.number)).finish()
        return [said] if said else []

    def live(self) -> int:
        """The release that all pipelines answer from; 0 if they don't agree or one doesn't answer."""
        live = self.repository.live()
        with EmotionClient(self.server.grpc_url) as client:
            try:
                answered = {client.predict(**item).release for item in EACH}
            except EmotionError:
                return 0
        ready = all(self.server.control.ready(name) for name in PIPELINES)
        return live.release if ready and live is not None and answered == {live.release} else 0

    def memory_mb(self) -> float:
        """Proportional set size of the server and its stages' processes, together."""
        return memory_mb(self.server.pid or 0)


@contextlib.contextmanager
def rig_on(
    release: Release,
    folder: Path,
    repository: Path | None = None,
    state: Path | None = None,
    token: str | None = None,
    install: InstallOptions | None = None,
) -> Iterator[Rig]:
    """A rig that serves a release on free ports until the block ends; `state`/releases is its driver's store."""
    served = repository or folder / "repository"
    Repository(served).install(release, install)
    options = ServerOptions(served, folder / "server", http_port=0, grpc_port=0, metrics_port=0)
    server = TritonServer(replace(options, control_token=token) if token else options)
    rig = Rig(server, state or folder)
    with server:
        rig.watch()
        try:
            yield rig
        finally:
            rig.end()


class Driver:
    """An upgrade or a rollback in a process of its own, whose steps are read as it reports them."""

    def __init__(self, rig: Rig, verb: str, arguments: Sequence[str], via: str | None = None) -> None:
        place = f"{via or rig.server.grpc_url}={rig.server.options.repository}=http://127.0.0.1:{rig.server.metrics_port}/metrics"
        command = [sys.executable, "-m", "cmt_cli.main", verb, *arguments, "--json"]
        command += ["--server", place, "--state", str(rig.state)]
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            command,
            env={**os.environ, TOKEN_VARIABLE: rig.server.options.control_token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def steps(self) -> Iterator[dict[str, Any]]:
        """Events as they come, each with the moment `at` (CLOCK_MONOTONIC), until the driver ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = {**json.loads(line), "at": time.monotonic()}
            self.events.append(event)
            yield event

    def finish(self) -> str:
        """Waits for its end. What it said on its way out; empty if all went well."""
        for _ in self.steps():
            pass
        assert self.process.stderr is not None
        output = self.process.stderr.read().strip()
        self.process.wait(DRIVER_TIMEOUT_S)
        return output if self.process.returncode else ""

    def after(self, step: str, state: str, work: Callable[[], object]) -> str:
        """Does something once a step has come to a state; then as `finish`."""
        for event in self.steps():
            if (event["step"], event["state"]) == (step, state):
                work()
        return self.finish()

    def kill_in(self, step: str, after_s: float) -> bool:
        """SIGKILL some seconds into a step; whether it came to that."""
        for event in self.steps():
            if (event["step"], event["state"]) == (step, "started"):
                time.sleep(after_s)
                self.process.kill()
                break
        self.process.wait(DRIVER_TIMEOUT_S)
        return self.process.returncode < 0

    def detail(self, step: str) -> str:
        """What a step said when it passed; empty if it didn't."""
        return next((str(e["detail"]) for e in self.events if (e["step"], e["state"]) == (step, "passed")), "")

    def moment(self, step: str, state: str) -> float:
        """When an event came."""
        return next(float(e["at"]) for e in self.events if (e["step"], e["state"]) == (step, state))


def unpin(repository: Repository) -> None:
    """The naive way: steps that take whatever version of a stage is the latest."""
    for path in repository.pipelines.glob(f"*/{TRITON_CONFIG_FILE}"):
        config = from_pbtxt(path.read_text())
        for step in config.ensemble_scheduling.step:
            step.model_version = -1
        path.write_text(to_pbtxt(config))


def truth_of(releases: Sequence[Release], items: Sequence[Item], folder: Path) -> Truth:
    """What each release answers, served alone and asked one by one."""
    truth: Truth = {}
    for release in releases:
        with rig_on(release, folder / f"alone-{release.number}") as rig, EmotionClient(rig.server.grpc_url) as client:
            truth[release.number] = [tuple(client.predict(**item).probabilities.values()) for item in items]
    return truth


def separation(truth: Truth) -> float:
    """The least distance (largest difference of a probability) between two releases' answers to one request."""
    answers = [np.array(answers) for answers in truth.values()]
    pairs = [(a, b) for index, a in enumerate(answers) for b in answers[index + 1 :]]
    return min((float(np.abs(a - b).max(axis=1).min()) for a, b in pairs), default=float("inf"))


@dataclass(frozen=True)
class Verdict:
    """What became of the traffic. mixed: answers that no release gives; mislabelled: that another one gives;
    refused: of the requests that were meant to be; turned_away: of the errors, those of requests never taken on."""

    answers: int
    errors: int
    lost: int
    mixed: int
    mislabelled: int
    by_release: dict[int, int]
    refused: int = 0
    turned_away: int = 0
    first_errors: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not (self.errors or self.lost or self.mixed or self.mislabelled)


def verdict_on(outcome: Outcome, truth: Truth, tolerance: float) -> Verdict:
    """Compares every answer with the truth; tolerance: largest difference of a probability."""
    answered = [asked for asked in outcome.asked if not asked.error]
    refused = [asked for asked in outcome.asked if asked.bad and asked.error.startswith("InvalidInput")]
    failed = [asked for asked in outcome.asked if asked.error and asked not in refused]
    makers = [_makers(asked, truth, tolerance) for asked in answered]
    releases = [asked.release for asked in answered]
    return Verdict(
        answers=len(answered),
        errors=len(failed),
        lost=outcome.lost,
        mixed=sum(not made for made in makers),
        mislabelled=sum(bool(made) and release not in made for made, release in zip(makers, releases, strict=True)),
        by_release={release: releases.count(release) for release in sorted(set(releases))},
        refused=len(refused),
        turned_away=sum(asked.turned_away for asked in failed),
        first_errors=tuple(dict.fromkeys(asked.error for asked in failed))[:3],
    )


def _makers(asked: Asked, truth: Truth, tolerance: float) -> list[int]:
    """The releases that give this answer to this request."""
    got = np.array(asked.probabilities)
    return [
        release
        for release, answers in truth.items()
        if len(answers[asked.item]) == len(got) and np.abs(got - answers[asked.item]).max() <= tolerance
    ]
