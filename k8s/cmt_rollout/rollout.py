"""Leads targets from the release that they run to another, step by step, and back when a step says no.

Until the flip no request of a client that doesn't follow the canary ever meets the new release. The flip moves all
pipelines of a target at once, on its disk, and then one after another in the server, within tens of milliseconds;
each answer comes from one release throughout. A driver that is killed leaves targets that serve one whole release;
the next one reads from them how far it came, and goes on or back.

Nothing is taken for done because it was told to be: an upgrade, a rollback and a way back end with the golden requests
of the release that is to serve, asked at every pipeline.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cmt_client import ServerUnavailable, ServiceError
from cmt_release.release import Release
from cmt_rollout.errors import RollbackFailed, RolloutError, StepFailed
from cmt_rollout.golden import Golden, golden_faults, golden_of_release
from cmt_rollout.options import Following, Report, RolloutOptions, Step
from cmt_rollout.steps import StepRun
from cmt_rollout.target import Target
from cmt_rollout.trial import Trial
from cmt_server.errors import ServerError

UNJUDGED = RolloutOptions(canary_s=0, max_flips=1, max_distance=1, max_slowdown=float("inf"))
COMES_BACK_S = 120.0
TRIES = 3  # of what must not be left half done, where somebody answers with a no
PAUSE_S = 0.2


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
        move = _Move(targets, UNJUDGED, report)
        move.each("recover", lambda target: target.recover(previous))
        move.note_before()
        with move.or_back():
            move.each("rollback", lambda target: _patiently(partial(move.serve, target, previous, target.live())))


@contextlib.contextmanager
def _locked(targets: Sequence[Target]) -> Iterator[None]:
    with contextlib.ExitStack() as locks:
        for target in targets:
            locks.enter_context(target.lock())
        yield


def _previous(targets: Sequence[Target]) -> int:
    """The one release that all targets answered from before. StepFailed if there isn't one."""
    before = {target.name: target.previous() for target in targets if target.previous() != target.live()}
    numbers = {before.get(target.name) for target in targets}
    previous = numbers.pop() if len(numbers) == 1 else None
    if previous is None:
        told = ", ".join(f"{target.name}: {before.get(target.name) or 'none'}" for target in targets)
        raise StepFailed("rollback", "all", f"there is no one release before ({told}); name one: `cmt upgrade N`")
    return previous


@dataclass(frozen=True)
class _Before:
    """What a target is led back to: a release, and the one that it had before that."""

    release: int
    previous: int | None


class _Move:
    """Leads targets to a release, and back to what they ran."""

    def __init__(self, targets: Sequence[Target], options: RolloutOptions, report: Report) -> None:
        self.targets, self.options = targets, options
        self.report = report if isinstance(report, Following) else Following(report)
        self.before: Mapping[str, _Before] = {}
        self.broken: dict[str, str] = {}  # targets whose release before fails its golden requests, and how

    def each(self, name: Step, work: Callable[[Target], str], targets: Sequence[Target] | None = None) -> None:
        """One step on all targets, or some."""
        for target in self.targets if targets is None else targets:
            StepRun(self.report, name, target.name).run(partial(work, target))

    def note_before(self, wanted: int | None = None) -> None:
        """Takes down what the targets run. One that has the wanted release already goes back to that before it."""
        self.before = {target.name: _before(target, wanted) for target in self.targets}

    @contextlib.contextmanager
    def or_back(self) -> Iterator[None]:
        """What goes wrong in the block leads all targets back."""
        try:
            yield
        except BaseException as error:
            self._back(error)
            raise

    def serve(self, target: Target, release: int, previous: int | None) -> str:
        """All pipelines of a target answer from a release, as its golden requests show."""
        target.flip(release, previous)
        target.end_trial()
        return f"release {release} takes the traffic; {self.proven(target, target.golden(release))}"

    def proven(self, target: Target, golden: Golden, candidate: bool = False) -> str:
        """What the golden requests showed at the live pipelines, or at the candidate's. ServerError if they failed."""
        if faults := _faults(target, golden, candidate):
            raise ServerError("; ".join(faults))
        return golden.passed()

    def _back(self, cause: BaseException) -> None:
        """Every target to what it ran before, the last that changed first; whether or not anybody listens."""
        self.report.expected = False
        lost = []
        for target in reversed(self.targets):
            try:
                StepRun(self.report, "rollback", target.name).run(partial(_patiently, partial(self._back_on, target)))
            except RolloutError as error:
                lost.append(str(error))
        if lost:
            raise RollbackFailed(f"{cause}; and rolling back failed: {'; '.join(lost)}") from cause

    def _back_on(self, target: Target) -> str:
        """The rejected release leaves the traffic first, whatever else keeps the one before from coming back."""
        before = self.before[target.name]
        try:
            target.end_trial()
        finally:
            target.flip(before.release, before.previous)
        target.retire((before.release,), self.options.drain_s)
        taken = f"release {before.release} has all traffic, as before"
        if target.name in self.broken:
            return f"{taken}, and it fails its golden requests, as before: {self.broken[target.name]}"
        return f"{taken}; {self.proven(target, target.golden(before.release))}"


class _Upgrade(_Move):
    """One upgrade; its methods are the steps."""

    def __init__(self, targets: Sequence[Target], release: Release, options: RolloutOptions, report: Report) -> None:
        super().__init__(targets, options, report)
        self.release, self.golden = release, golden_of_release(release)
        self.trials: dict[str, Trial] = {}

    def run(self) -> None:
        self.each("recover", lambda target: target.recover(self.release.number))
        self.note_before(self.release.number)
        away = [target for target in self.targets if target.live() != self.release.number]
        self.each("preflight", self._preflight, away)
        with self.or_back():
            self.each("load", self._load, away)
            self.each("golden", self._golden, away)
            self.each("drift", lambda target: self.trials[target.name].drift(), away)
            self.each("canary", lambda target: self.trials[target.name].canary(), away)
            self.each("flip", self._flip)
            self.each("watch", self._watch)
        self.each("retire", lambda target: _patiently(partial(self._retire, target)))

    def _preflight(self, target: Target) -> str:
        if reasons := target.preflight(self.release):
            raise StepFailed("preflight", target.name, "; ".join(reasons))
        said = f"release {self.release.number} ({self.release.digest[:12]}) is whole and fits"
        if faults := _faults(target, target.golden(target.live())):
            self.broken[target.name] = faults[0]
            said += f"; release {target.live()}, which is live, fails its golden requests, so it is no measure: "
            said += faults[0]
        return said

    def _load(self, target: Target) -> str:
        live = target.live()
        target.retire((live, self.release.number), self.options.drain_s)  # of three releases the oldest goes
        target.load(self.release)
        self.trials[target.name] = Trial(target, self.release, self.options, target.name in self.broken)
        return f"loaded and warmed up beside release {live}"

    def _golden(self, target: Target) -> str:
        return self.proven(target, self.golden, candidate=True)

    def _flip(self, target: Target) -> str:
        if target.name in self.trials:
            self.trials[target.name].note_live()
        previous = target.previous() if target.live() == self.release.number else target.live()
        target.flip(self.release.number, previous)
        target.end_trial()
        return f"release {self.release.number} takes the traffic"

    def _watch(self, target: Target) -> str:
        proof = self.proven(target, self.golden)
        trial = self.trials.get(target.name)
        return f"{proof}; {trial.watch()}" if trial else proof

    def _retire(self, target: Target) -> str:
        live, previous = target.live(), target.previous()
        if self.options.keep and previous is not None:
            said = f"release {previous} stays loaded: `cmt rollback` is instant"
        else:
            said = target.retire((live,), self.options.drain_s)
        return f"{said}; {self.proven(target, self.golden)}"


def _faults(target: Target, golden: Golden, candidate: bool = False) -> list[str]:
    with target.client(candidate) as client:
        return golden_faults(client, golden)


def _before(target: Target, wanted: int | None) -> _Before:
    live, previous = target.live(), target.previous()
    if live == wanted and previous is not None and previous in target.resident():
        return _Before(previous, None)
    return _Before(live, previous)


def _patiently(work: Callable[[], str]) -> str:
    """Again while nobody answers, for a server that died is started again; a few times where somebody says no."""
    deadline, refused = time.monotonic() + COMES_BACK_S, 0
    while True:
        try:
            return work()
        except ServerUnavailable:
            if time.monotonic() > deadline:
                raise
        except (ServiceError, ServerError, OSError):
            refused += 1
            if refused == TRIES:
                raise
        time.sleep(PAUSE_S)
