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
from cmt_rollout import rollout, trial
from cmt_rollout.errors import RollbackFailed, StepFailed
from cmt_rollout.golden import Golden, generated_golden
from cmt_rollout.live_traffic import Counters, Traffic
from cmt_rollout.options import STEPS, Event, RolloutOptions
from cmt_rollout.rollout import rollback, upgrade
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
    lived: list[Traffic] = field(default_factory=list)
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

    def golden(self, number: int) -> Golden:
        return generated_golden(number)

    def counters(self) -> Counters:
        return Counters({})

    def traffic(self, window: Counters, release: int, candidate: bool) -> Traffic:
        told = self.canary if candidate else self.lived
        return told.pop(0) if told else Traffic()

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
    monkeypatch.setattr(rollout, "golden_faults", lambda client, golden: [])
    monkeypatch.setattr(rollout, "golden_of_release", lambda release: generated_golden(release.number))
    monkeypatch.setattr(rollout, "PAUSE_S", 0.01)
    monkeypatch.setattr(trial, "PAUSE_S", 0.01)


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
    assert target.calls[-3:] == ["recover 1", "flip 1 2", "end_trial"]


def test_where_it_is_live_already_only_the_old_one_goes(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(served=2, before=1, loaded=[1, 2])  # as a driver that was killed left it
    upgrade([target], release, replace(QUICK, keep=True), events.append)
    assert target.loaded == [1, 2]
    upgrade([target], release, QUICK, events.append)
    assert target.calls == ["recover 2", "flip 2 1", "end_trial", "recover 2", "flip 2 1", "end_trial", "retire 2"]
    assert target.loaded == [2]


def test_a_reason_found_before_loading_ends_it_at_once(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(reasons=["other labels", "too large"])
    with pytest.raises(StepFailed, match="preflight on played: other labels; too large"):
        upgrade([target], release, QUICK, events.append)
    assert target.calls == ["recover 2", "preflight"]


@pytest.mark.long
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
    wrong = ["audio: a probability is off by 0.5"]
    monkeypatch.setattr(rollout, "golden_faults", lambda client, golden: wrong if golden.number == 2 else [])
    with pytest.raises(StepFailed, match=r"golden on played: audio: a probability is off by 0\.5"):
        upgrade([target], release, QUICK, events.append)
    assert "flip 2 1" not in target.calls
    assert target.loaded == [1]


def test_a_canary_whose_clients_requests_fail_ends_it(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(canary=[Traffic(20, 9)], lived=[Traffic(400, 2)])
    with pytest.raises(StepFailed, match=r"canary on played: the candidate: of live requests 9 of 29 failed \(31\.0 %"):
        upgrade([target], release, QUICK, events.append)
    assert target.served == 1


def test_live_requests_that_fail_more_than_before_end_a_watch(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(lived=[Traffic(400, 2), Traffic(400, 2), Traffic(20, 9)])
    with pytest.raises(StepFailed, match=r"watch on played: of live requests 9 of 29 .* before: 2 of 402 failed"):
        upgrade([target], release, QUICK, events.append)
    assert (target.served, target.loaded) == (1, [1])


def test_what_callers_do_wrong_is_said_and_vetoes_nothing(release: Release, events: list[Event]) -> None:
    refused = {"audio.not_decodable": 12}
    target = PlayedTarget(canary=[Traffic(20, 0, refused)], lived=[Traffic(), Traffic(), Traffic(300, 0, refused)])
    upgrade([target], release, QUICK, events.append)
    said = {event.step: event.detail for event in events if event.state == "passed"}
    assert "0 of 20 failed (0.0 %, 95 %: 0.0 to 16.1), 12 refused (audio.not_decodable 12)" in said["canary"]
    assert "0 of 300 failed (0.0 %, 95 %: 0.0 to 1.3), 12 refused" in said["watch"]


def test_failures_that_are_allowed_are_let_pass(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(canary=[Traffic(99, 40)])
    upgrade([target], release, replace(QUICK, max_errors=0.5), events.append)
    assert target.served == 2


def test_a_broken_live_release_doesnt_protect_itself(
    release: Release, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it answers, how far the new one is from it is no reason to keep it."""
    target = PlayedTarget()
    target.fake.label = "anger"
    monkeypatch.setattr(rollout, "golden_faults", lambda _, golden: ["text: NaN"] if golden.number == 1 else [])
    upgrade([target], release, replace(QUICK, max_flips=0, max_distance=0), events.append)
    said = {event.step: event.detail for event in events if event.state == "passed"}
    assert "release 1, which is live, fails its golden requests, so it is no measure: text: NaN" in said["preflight"]
    assert "the running release fails its own golden requests" in said["drift"]
    assert target.served == 2


def test_a_way_back_to_a_broken_release_says_so(
    release: Release, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = PlayedTarget(fails={"share": [ServerError("no")]})
    monkeypatch.setattr(rollout, "golden_faults", lambda _, golden: ["text: NaN"] if golden.number == 1 else [])
    with pytest.raises(StepFailed, match="canary on played: no"):
        upgrade([target], release, QUICK, events.append)
    assert "fails its golden requests, as before: text: NaN" in events[-1].detail


def test_several_targets_move_together_or_not_at_all(release: Release, events: list[Event]) -> None:
    targets = [PlayedTarget("a"), PlayedTarget("b"), PlayedTarget("c", fails={"flip": [ServerError("no")]})]
    with pytest.raises(StepFailed, match="flip on c: no"):
        upgrade(targets, release, QUICK, events.append)
    assert [target.served for target in targets] == [1, 1, 1]
    assert [event.target for event in events if event.step == "rollback" and event.state == "passed"] == ["c", "b", "a"]


def test_a_target_that_has_it_already_isnt_moved(release: Release, events: list[Event]) -> None:
    targets = [PlayedTarget("a", served=2, loaded=[2]), PlayedTarget("b")]
    upgrade(targets, release, QUICK, events.append)
    assert targets[0].calls == ["recover 2", "flip 2 None", "end_trial", "retire 2"]
    assert targets[1].served == 2


def test_a_way_back_that_fails_is_said(release: Release, events: list[Event]) -> None:
    target = PlayedTarget(fails={"load": [ServerError("load")], "end_trial": [ServerError("end")] * 3})
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


@pytest.mark.long
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
