"""The steps of an upgrade and of rolling back, on targets that are played; test_upgrade.py takes the real server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cmt_client import EmotionClient, FakeTransport, InferenceFailed
from cmt_client.errors import ServerUnavailable
from cmt_client.fake import FAKE_RELEASE
from cmt_release.release import Release
from cmt_rollout import rollout
from cmt_rollout.errors import RollbackFailed, StepFailed
from cmt_rollout.options import STEPS, Event, RolloutOptions
from cmt_rollout.rollout import rollback, upgrade
from cmt_rollout.target import Traffic
from cmt_server.errors import RepositoryBusy, ServerError
from small_releases import make

QUICK = RolloutOptions(canary_s=0.01, watch_s=0.01, samples=7, max_slowdown=1e6)


@dataclass
class PlayedTarget:
    """Serves release 1. fails: method -> errors that it raises, one a call; calls: what was asked of it, in order."""

    name: str = "played"
    served: int = 1
    before: int | None = None
    loaded: list[int] = field(default_factory=lambda: [1])
    reasons: list[str] = field(default_factory=list)
    fails: dict[str, list[BaseException]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    canary: list[Traffic] = field(default_factory=list)
    label: str = "joy"
    busy: bool = False
    fake: FakeTransport = field(default_factory=FakeTransport)

    def _called(self, what: str, *details: object) -> None:
        self.calls.append(" ".join(map(str, (what, *details))))
        if self.fails.get(what):
            raise self.fails[what].pop(0)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        if self.busy:
            raise RepositoryBusy("process 1 is changing it")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def recover(self, wanted: int) -> str:
        self._called("recover", wanted)
        return "nothing to do"

    def live(self) -> int:
        return self.served

    def previous(self) -> int | None:
        return self.before

    def resident(self) -> tuple[int, ...]:
        return tuple(self.loaded)

    def preflight(self, release: Release) -> list[str]:
        self._called("preflight")
        return self.reasons

    def load(self, release: Release) -> None:
        self._called("load", release.number)
        self.loaded.append(release.number)

    def share(self, release: Release, canary_share: float) -> None:
        self._called("share", canary_share)

    def client(self, candidate: bool) -> EmotionClient:
        self.fake.candidate = replace(FAKE_RELEASE, release=2)
        return EmotionClient("fake:1", transport=self.fake, retries=0, canary="only" if candidate else "off")

    def traffic(self, candidate: bool) -> Traffic:
        return self.canary.pop(0) if candidate and self.canary else Traffic(0, 0)

    def flip(self, release: int, previous: int | None) -> None:
        self._called("flip", release, previous)
        self.served, self.before = release, previous

    def end_trial(self) -> None:
        self._called("end_trial")

    def retire(self, keep: tuple[int, ...], drain_s: float) -> str:
        self._called("retire", *keep)
        self.loaded = [number for number in self.loaded if number in keep]
        return f"kept {keep}"


@pytest.fixture(autouse=True)
def _golden_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases of a few bytes have no preprocessing to ask golden requests with."""
    monkeypatch.setattr(rollout, "golden_faults", lambda client, release: [])
    monkeypatch.setattr(rollout, "PAUSE_S", 0.01)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    make(tmp_path)
    return make(tmp_path, fuse="new")


@pytest.fixture
def events() -> list[Event]:
    return []


def test_an_upgrade_takes_every_step_in_order(release: Release, events: list[Event]) -> None:
    target = PlayedTarget()
    upgrade([target], release, QUICK, events.append)
    assert [event.step for event in events if event.state == "passed"] == list(STEPS)
    assert (target.served, target.before, target.loaded) == (2, 1, [2])
    assert target.calls == [
        "recover 2",
        "preflight",
        "retire 1 2",
        "load 2",
        "share 0.1",
        "flip 2 1",
        "end_trial",
        "retire 2",
    ]
    assert not target.busy


def test_the_old_release_can_stay_loaded(release: Release, events: list[Event]) -> None:
    target = PlayedTarget()
    upgrade([target], release, replace(QUICK, keep=True), events.append)
    assert target.loaded == [1, 2]
    rollback([target], lambda number: release, events.append)
    assert (target.served, target.before) == (1, 2)
    assert target.calls[-2:] == ["recover 1", "flip 1 2"]


def test_where_it_is_live_already_only_the_old_one_goes(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(served=2, before=1, loaded=[1, 2])  # as a driver that was killed left it
    upgrade([target], release, replace(QUICK, keep=True), events.append)
    assert target.loaded == [1, 2]
    upgrade([target], release, QUICK, events.append)
    assert target.calls == ["recover 2", "recover 2", "retire 2"]
    assert target.loaded == [2]


def test_a_reason_found_before_loading_ends_it_at_once(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(reasons=["other labels", "too large"])
    with pytest.raises(StepFailed, match="preflight on played: other labels; too large"):
        upgrade([target], release, QUICK, events.append)
    assert target.calls == ["recover 2", "preflight"]


@pytest.mark.parametrize("method", ["load", "share", "flip", "end_trial"])
@pytest.mark.parametrize("error", [ServerError("no"), InferenceFailed("no"), OSError(28, "No space left on device")])
def test_whatever_fails_the_old_release_has_the_traffic(
    release: Release, events: list[Event], method: str, error: Exception
) -> None:
    target = PlayedTarget(fails={method: [error]})
    with pytest.raises(StepFailed):
        upgrade([target], release, QUICK, events.append)
    assert (target.served, target.loaded) == (1, [1])
    assert (events[-1].step, events[-1].state) == ("rollback", "passed")
    assert not target.busy


def test_ctrl_c_leads_back_too(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(fails={"share": [KeyboardInterrupt()]})
    with pytest.raises(KeyboardInterrupt):
        upgrade([target], release, QUICK, events.append)
    assert (target.served, target.loaded) == (1, [1])


def test_golden_answers_that_differ_end_it(
    release: Release, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = PlayedTarget()
    monkeypatch.setattr(rollout, "golden_faults", lambda client, release: ["audio: a probability is off by 0.5"])
    with pytest.raises(StepFailed, match=r"golden on played: audio: a probability is off by 0\.5"):
        upgrade([target], release, QUICK, events.append)
    assert "flip 2 1" not in target.calls
    assert target.loaded == [1]


def test_a_canary_whose_clients_requests_fail_ends_it(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(canary=[Traffic(10, 0), Traffic(30, 4)])
    with pytest.raises(StepFailed, match=r"canary on played: .*4 of 24 requests to the candidate"):
        upgrade([target], release, QUICK, events.append)
    assert target.served == 1


def test_failures_that_are_allowed_are_let_pass(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(canary=[Traffic(10, 0), Traffic(99, 1)])
    upgrade([target], release, replace(QUICK, max_errors=0.5), events.append)
    assert target.served == 2


def test_several_targets_move_together_or_not_at_all(release: Release, events: list[Event]) -> None:
    targets = [PlayedTarget("a"), PlayedTarget("b"), PlayedTarget("c", fails={"flip": [ServerError("no")]})]
    with pytest.raises(StepFailed, match="flip on c: no"):
        upgrade(targets, release, QUICK, events.append)
    assert [target.served for target in targets] == [1, 1, 1]
    assert [event.target for event in events if event.step == "rollback" and event.state == "passed"] == ["c", "b", "a"]


def test_a_target_that_has_it_already_isnt_moved(release: Release, events: list[Event]) -> None:
    targets = [PlayedTarget("a", served=2, loaded=[2]), PlayedTarget("b")]
    upgrade(targets, release, QUICK, events.append)
    assert (targets[0].calls, targets[1].served) == (["recover 2", "retire 2"], 2)


def test_a_way_back_that_fails_is_said(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(fails={"load": [ServerError("load")], "end_trial": [ServerError("end")]})
    with pytest.raises(RollbackFailed, match="load on played: load; and rolling back failed: rollback on played: end"):
        upgrade([target], release, QUICK, events.append)


def test_the_way_back_waits_for_a_server_that_is_started_again(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(fails={"load": [ServerUnavailable("dead")], "end_trial": [ServerUnavailable("dead")] * 3})
    with pytest.raises(StepFailed, match="load on played: dead"):
        upgrade([target], release, QUICK, events.append)
    assert target.calls.count("end_trial") == 4
    assert target.loaded == [1]


def test_of_two_drivers_one_is_refused(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(busy=True)
    with pytest.raises(RepositoryBusy):
        upgrade([target], release, QUICK, events.append)
    assert not target.calls


def test_a_rollback_loads_again_what_was_retired(tmp_path: Path, release: Release, events: list[Event]) -> None:
    target = PlayedTarget(served=2, before=2, loaded=[2])
    target.before = 1
    asked: list[int] = []

    def fetch(number: int) -> Release:
        asked.append(number)
        return replace(release, manifest=replace(release.manifest, info=replace(release.manifest.info, release=1)))

    rollback([target], fetch, events.append)
    assert (asked, target.served) == ([1], 1)


def test_without_a_release_before_a_rollback_says_so(release: Release, events: list[Event]) -> None:
    with pytest.raises(StepFailed, match=r"no one release before \(played: none\); name one"):
        rollback([PlayedTarget()], lambda _: release, events.append)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canary_share": 1.5}, "canary_share: got 1.5; expected a share from 0 to 1"),
        ({"watch_s": -1}, "watch_s: got -1; expected seconds, 0 or more"),
        ({"max_slowdown": 0.5}, "max_slowdown: got 0.5; expected 1 or more"),
        ({"samples": 3}, "samples: got 3; expected 7 or more"),
    ],
)
def test_options_are_checked(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(QUICK, **changes)  # type: ignore[arg-type]
