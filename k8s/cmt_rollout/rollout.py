"""Leads targets from the release that they run to another, step by step, and back when a step says no.

Until the flip no request of a client that doesn't follow the canary ever meets the new release. The flip moves all
pipelines of a target at once, on its disk, and then one after another in the server, within tens of milliseconds;
each answer comes from one release throughout. A driver that is killed leaves targets that serve one whole release;
the next one reads from them how far it came, and goes on or back.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import tenacity

from cmt_client import EmotionError, Item, ServerUnavailable
from cmt_release.release import Release
from cmt_rollout.errors import RollbackFailed, RolloutError, StepFailed
from cmt_rollout.options import Report, RolloutOptions, Step
from cmt_rollout.release_checks import Comparison, golden_faults, live_like
from cmt_rollout.steps import StepRun
from cmt_rollout.target import Target

UNJUDGED = RolloutOptions(canary_s=0, max_flips=1, max_distance=1, max_slowdown=float("inf"))
COMES_BACK_S = 120.0
PAUSE_S = 0.2  # between requests that only watch


def upgrade(targets: Sequence[Target], release: Release, options: RolloutOptions, report: Report) -> None:
    """Every target answers from `release`, or from what it ran before.

    Raises StepFailed with the reason, after rolling back; RollbackFailed when that failed too; RepositoryBusy when
    another upgrade is at work.
    """
    with _locked(targets):
        _Upgrade(targets, release, options, report).run()


def rollback(targets: Sequence[Target], fetch: Callable[[int], Release], report: Report) -> None:
    """Every target answers from the release before: at once where that is still loaded, else as after an upgrade.

    fetch: gives the release of a number when it has to be loaded again; only its golden requests are asked then, not
    how far it is from the release that is left. Raises as `upgrade` does.
    """
    with _locked(targets):
        previous = _previous(targets)
        if not all(previous in target.resident() for target in targets):
            _Upgrade(targets, fetch(previous), UNJUDGED, report).run()
            return
        for target in targets:
            StepRun(report, "recover", target.name).run(partial(target.recover, previous))
        for target in targets:
            StepRun(report, "rollback", target.name).run(partial(_flipped, target, previous, target.live()))


@contextlib.contextmanager
def _locked(targets: Sequence[Target]) -> Iterator[None]:
    with contextlib.ExitStack() as locks:
        for target in targets:
            locks.enter_context(target.lock())
        yield


def _previous(targets: Sequence[Target]) -> int:
    """The one release that all targets answered from before. StepFailed if there isn't one."""
    before = {target.previous() for target in targets}
    previous = before.pop() if len(before) == 1 else None
    if previous is None:
        told = ", ".join(f"{target.name}: {target.previous() or 'none'}" for target in targets)
        raise StepFailed("rollback", "all", f"there is no one release before ({told}); name one: `cmt upgrade N`")
    return previous


def _flipped(target: Target, release: int, previous: int | None) -> str:
    target.flip(release, previous)
    return _taken(release)


class _Upgrade:
    """One upgrade; its methods are the steps."""

    def __init__(self, targets: Sequence[Target], release: Release, options: RolloutOptions, report: Report) -> None:
        self.targets, self.release, self.options, self.report = targets, release, options, report
        self.before: dict[str, tuple[int, int | None]] = {}
        self.items = live_like(options)

    def run(self) -> None:
        self._each("recover", lambda target: target.recover(self.release.number))
        self.before = {target.name: (target.live(), target.previous()) for target in self.targets}
        everywhere = self.targets
        self.targets = [target for target in self.targets if target.live() != self.release.number]
        self._move()
        self.targets = everywhere  # one that had it already may not have retired the old one yet
        self._each("retire", self._retire)

    def _move(self) -> None:
        self._each("preflight", self._preflight)
        try:
            self._each("load", self._load)
            self._each("golden", lambda target: self._golden(target, candidate=True))
            self._each("drift", self._drift)
            self._each("canary", self._canary)
            self._each("flip", self._flip)
            self._each("watch", self._watch)
        except BaseException as error:
            self._back(error)
            raise

    def _each(self, name: Step, work: Callable[[Target], str]) -> None:
        for target in self.targets:
            StepRun(self.report, name, target.name).run(partial(work, target))

    def _preflight(self, target: Target) -> str:
        if reasons := target.preflight(self.release):
            raise StepFailed("preflight", target.name, "; ".join(reasons))
        return f"release {self.release.number} ({self.release.digest[:12]}) is whole and fits"

    def _load(self, target: Target) -> str:
        live = target.live()
        target.retire((live, self.release.number), self.options.drain_s)  # of three releases the oldest goes
        target.load(self.release)
        return f"loaded and warmed up beside release {live}"

    def _golden(self, target: Target, candidate: bool) -> str:
        with target.client(candidate) as client:
            faults = golden_faults(client, self.release)
        if faults:
            raise StepFailed("golden", target.name, "; ".join(faults))
        return f"{2 * len(self.release.manifest.golden)} golden requests answered as PyTorch does"

    def _drift(self, target: Target) -> str:
        comparison = Comparison()
        with target.client(False) as running, target.client(True) as trial:
            for item in self.items:
                comparison.ask(running, trial, item)
        return _judged("drift", target, comparison, self.options)

    def _canary(self, target: Target) -> str:
        """Clients that follow it send it their share; a few requests of our own go to both all the while."""
        if self.options.canary_s == 0:
            return "left out"
        target.share(self.release, self.options.canary_share)
        before, comparison = (target.traffic(True), target.traffic(False)), Comparison()
        with target.client(False) as running, target.client(True) as trial:
            for item in self._for(self.options.canary_s):
                comparison.ask(running, trial, item)
                if len(comparison.errors) > 1 + self.options.max_errors * comparison.asked:
                    break
        ours = comparison.asked
        canary, live = target.traffic(True).since(before[0]), target.traffic(False).since(before[1])
        if canary.failing > live.failing + self.options.max_errors and canary.failed > 0:
            comparison.errors.append(f"{canary.failed} of {canary.answered + canary.failed} requests to the candidate")
        told = _judged("canary", target, comparison, self.options)
        followed = max(0, canary.answered + canary.failed - ours)
        return (
            f"{self.options.canary_share:.0%} for {self.options.canary_s:g} s, {followed} of clients' requests; {told}"
        )

    def _flip(self, target: Target) -> str:
        target.flip(self.release.number, self.before[target.name][0])
        target.end_trial()
        return _taken(self.release.number)

    def _watch(self, target: Target) -> str:
        """The golden requests at the live pipelines, then their failures and our own requests for a while."""
        self._golden(target, candidate=False)
        before, failed, asked = target.traffic(False), [], 0
        with target.client(False) as client:
            for item in self._for(self.options.watch_s):
                asked += 1
                try:
                    client.predict(**item)
                except EmotionError as error:
                    failed.append(str(error))
        came = target.traffic(False).since(before)
        if len(failed) > self.options.max_errors * asked:
            raise StepFailed("watch", target.name, f"{len(failed)} of our {asked} requests failed: {failed[0]}")
        return f"{came.answered} answered and {came.failed} refused in {self.options.watch_s:g} s"

    def _retire(self, target: Target) -> str:
        live, previous = target.live(), target.previous()
        if self.options.keep and previous is not None:
            return f"release {previous} stays loaded: `cmt rollback` is instant"
        return target.retire((live,), self.options.drain_s)

    def _for(self, seconds: float) -> Iterator[Item]:
        """Live-like requests, a few a second, until the time is over; at least one."""
        end = time.monotonic() + seconds
        for item in itertools.cycle(self.items):
            yield item
            if time.monotonic() >= end:
                return
            time.sleep(PAUSE_S)

    def _back(self, cause: BaseException) -> None:
        """Every target to what it ran before, the last that changed first."""
        lost = []
        for target in reversed(self.targets):
            try:
                StepRun(self.report, "rollback", target.name).run(partial(_patiently, partial(self._back_on, target)))
            except RolloutError as error:
                lost.append(str(error))
        if lost:
            raise RollbackFailed(f"{cause}; and rolling back failed: {'; '.join(lost)}") from cause

    def _back_on(self, target: Target) -> str:
        live, previous = self.before[target.name]
        if target.live() != live:
            target.flip(live, previous)
        target.end_trial()
        target.retire((live,), self.options.drain_s)
        return f"release {live} has all traffic, as before"


def _patiently(work: Callable[[], str]) -> str:
    """Again while nobody answers: a server that died is started again by whoever looks after it."""
    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ServerUnavailable),
        stop=tenacity.stop_after_delay(COMES_BACK_S),
        wait=tenacity.wait_fixed(PAUSE_S),
        reraise=True,
    )
    return again(work)


def _judged(step: Step, target: Target, comparison: Comparison, options: RolloutOptions) -> str:
    if faults := comparison.faults(options):
        raise StepFailed(step, target.name, "; ".join(faults))
    return comparison.summary()


def _taken(release: int) -> str:
    return f"release {release} takes the traffic"
