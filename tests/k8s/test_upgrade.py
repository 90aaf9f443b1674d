"""Upgrades on the real server, under traffic, through the real `cmt upgrade` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_cli.state import State
from cmt_client import EmotionClient
from cmt_export.checkpoint import checkpoint_from_preset
from cmt_perf import faults
from cmt_perf.relay import NthLoads, Relay
from cmt_perf.traffic import Traffic, TrafficPlan, traffic_items
from cmt_perf.upgrade_rig import Rig, Truth, rig_on, separation, unpin, verdict_on
from cmt_pipeline.pipelines import PIPELINES
from cmt_release.release import Release
from items import as_files, reference

#: Random weights differ by far more than a retrained release would.
UNLIKE = (
    *("--max-flips", "1", "--max-distance", "1", "--max-slowdown", "20", "--samples", "7"),
    *("--canary-s", "0.5", "--watch-s", "0.5"),
)

#: A few requests a second, of clients that follow a canary and of others.
LIGHT = TrafficPlan("", "", closed_grpc=1, closed_http=0, pause_s=0.15, open_rate=4.0)

Pair = tuple[Release, Release]


@pytest.fixture(scope="session")
def pair(tinies: Pair) -> Pair:
    """Two releases whose encoders and fusion differ."""
    return tinies


@pytest.fixture(scope="session")
def truth(pair: Pair) -> Truth:
    """What the PyTorch models that they were exported from answer to the traffic's requests."""
    items = [as_files(item) for item in traffic_items(LIGHT)]
    models = {release.number: checkpoint_from_preset("tiny", "meld", seed=seed) for seed, release in enumerate(pair)}
    return {
        number: [tuple(reference(model, item)["probabilities"].tolist()) for item in items]
        for number, model in models.items()
    }


@pytest.fixture
def rig(pair: Pair, tiny_state: State, tmp_path: Path) -> Iterator[Rig]:
    """The first of them, served and looked after."""
    with rig_on(pair[0], tmp_path, state=tiny_state.root) as rig:
        yield rig


@pytest.fixture(scope="module")
def shared_rig(pair: Pair, tiny_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One server for test after test: whatever each does to it, it must be sound for the next."""
    with rig_on(pair[0], tmp_path_factory.mktemp("shared"), state=tiny_state.root) as rig:
        yield rig


def by_turns(rig: Rig, pair: Pair) -> Pair:
    """The release that is live on a shared server, and the other one."""
    return pair if rig.live() == pair[0].number else (pair[1], pair[0])


@contextmanager
def asked(rig: Rig, tmp_path: Path) -> Iterator[Traffic]:
    plan = replace(LIGHT, grpc_url=rig.server.grpc_url, http_url=rig.server.http_url)
    with Traffic(plan, tmp_path / "traffic.jsonl") as traffic:
        traffic.wait_for(5)
        yield traffic


def some_more(traffic: Traffic, count: int = 10) -> None:
    traffic.wait_for(len(traffic.so_far()) + count)


@pytest.mark.long
def test_there_and_back_and_there_again_loses_nothing_and_mixes_nothing(
    rig: Rig, pair: Pair, truth: Truth, tmp_path: Path
) -> None:
    first, second = (release.number for release in pair)
    assert separation(truth) > 1e-3
    with asked(rig, tmp_path) as traffic:
        upgrade = rig.driver("upgrade", str(second), "--keep", "--canary-share", "0.5", *UNLIKE)
        assert upgrade.finish() == ""
        assert rig.live() == second
        two = rig.memory_mb()
        some_more(traffic)
        assert rig.driver("rollback").finish() == ""
        assert rig.live() == first
        some_more(traffic)
        assert rig.driver("upgrade", str(second), *UNLIKE).finish() == ""
        some_more(traffic)
        assert rig.live() == second
        assert rig.memory_mb() < 0.85 * two  # the old release's memory came back
        verdict = verdict_on(traffic.stop(), truth, separation(truth) / 3)
    assert verdict.clean, verdict
    assert verdict.by_release.keys() == {first, second}
    assert rig.mends == []
    begun = upgrade.moment("canary", "started")
    flipped = upgrade.moment("flip", "started")
    on_trial = [a for a in traffic.so_far() if begun < a.came_s < flipped and a.release == second]
    assert all(a.loop == "open" for a in on_trial)  # only clients that follow a canary met it
    # What is left: one release, its stages, and pipelines that name it.
    assert list(rig.repository.manifests()) == [second]
    assert not list(rig.repository.candidate.iterdir())
    entries = rig.server.control.index()
    ready = {entry.name: entry.version for entry in entries if entry.state == "READY"}
    assert ready["fuse"] == pair[1].manifest.stages["fuse"].version
    assert not [name for name in ready if name.startswith("candidate_")]


@pytest.mark.long
def test_readiness_of_the_pipelines_never_flickers(shared_rig: Rig, pair: Pair) -> None:
    """Triton's own readiness says no while anything loads; that of the pipelines is what counts."""
    rig, (_, other) = shared_rig, by_turns(shared_rig, pair)
    over, seen = threading.Event(), set()

    def probe() -> None:
        while not over.wait(0.02):
            seen.update((name, rig.server.control.ready(name)) for name in ("emotion", "emotion_text"))

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        assert rig.driver("upgrade", str(other.number), *UNLIKE).finish() == ""
    finally:
        over.set()
        prober.join()
    assert seen == {("emotion", True), ("emotion_text", True)}


def bad(kind: str, state: State, base: Release) -> Release:
    if kind in faults.CHANGES:
        return faults.changed_answers(state.releases, base, kind)
    return getattr(faults, kind)(state.releases, base)  # type: ignore[no-any-return]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "step", "reason"),
    [
        ("unloadable", "load", "doesn't open as an engine"),
        ("nan", "golden", "NaN or infinity"),
        pytest.param("damaged", "preflight", "has sha256", marks=pytest.mark.slow),
        pytest.param("other_tensors", "preflight", "the tensors of fuse aren't those", marks=pytest.mark.slow),
        pytest.param("other_labels", "preflight", "its label set is iemocap4", marks=pytest.mark.slow),
        # the warm-up or the golden requests notice, whichever comes first
        pytest.param("wrong_dims", "", "", marks=pytest.mark.slow),
        pytest.param("slow", "drift", "times as long", marks=pytest.mark.slow),
    ],
)
def test_a_bad_release_never_reaches_traffic(
    shared_rig: Rig, pair: Pair, truth: Truth, tiny_state: State, tmp_path: Path, kind: str, step: str, reason: str
) -> None:
    live, other = by_turns(shared_rig, pair)
    release = bad(kind, tiny_state, other)
    options = ["--max-slowdown", "2", "--samples", "7"] if kind == "slow" else []
    with asked(shared_rig, tmp_path) as traffic:
        said = shared_rig.driver("upgrade", str(release.number), *UNLIKE, *options).finish()
        some_more(traffic)
        verdict = verdict_on(traffic.stop(), truth, separation(truth) / 3)
    said = " ".join(said.split())
    assert said.startswith(f"StepFailed: {step}")
    assert reason in said
    assert verdict.clean, verdict
    assert verdict.by_release.keys() == {live.number}
    assert shared_rig.live() == live.number
    assert list(shared_rig.repository.manifests()) == [live.number]


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "after_s"),
    [
        ("canary", 0.1),
        ("flip", 0.0),
        pytest.param("load", 0.3, marks=pytest.mark.slow),
        pytest.param("retire", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_driver_harms_nothing_and_the_next_one_goes_on(
    shared_rig: Rig, pair: Pair, truth: Truth, tmp_path: Path, step: str, after_s: float
) -> None:
    rig, (live, other) = shared_rig, by_turns(shared_rig, pair)
    with asked(rig, tmp_path) as traffic:
        assert rig.driver("upgrade", str(other.number), *UNLIKE).kill_in(step, after_s)
        some_more(traffic)
        assert rig.live() in (live.number, other.number, 0)  # 0: pipelines between the two, each whole
        assert rig.driver("upgrade", str(other.number), *UNLIKE).finish() == ""
        some_more(traffic)
        verdict = verdict_on(traffic.stop(), truth, separation(truth) / 3)
    assert verdict.clean, verdict
    assert rig.live() == other.number
    assert list(rig.repository.manifests()) == [other.number]


@pytest.mark.long
def test_a_flip_that_was_cut_off_is_finished(shared_rig: Rig, pair: Pair) -> None:
    """The link was moved, which happens only once every check has passed; five pipelines had followed it."""
    rig = shared_rig
    first, second = (release.number for release in by_turns(rig, pair))
    assert rig.driver("upgrade", str(second), *UNLIKE).kill_in("canary", 0.3)
    rig.repository.flip(second, first)
    for name in list(PIPELINES)[:5]:
        rig.server.control.load(name)
    assert rig.live() == 0
    again = rig.driver("upgrade", str(second), *UNLIKE)
    assert again.finish() == ""
    recovered = next(e["detail"] for e in again.events if (e["step"], e["state"]) == ("recover", "passed"))
    assert f"9 pipelines brought to release {second}, which the repository says is live" in recovered
    assert rig.live() == second
    assert list(rig.repository.manifests()) == [second]


@pytest.mark.long
def test_a_server_that_dies_while_it_loads_comes_back_with_the_old_release(
    rig: Rig, pair: Pair, truth: Truth, tmp_path: Path
) -> None:
    with asked(rig, tmp_path) as traffic:
        driver = rig.driver("upgrade", str(pair[1].number), *UNLIKE)
        for event in driver.steps():
            if (event["step"], event["state"]) == ("load", "started"):
                os.kill(rig.server.pid or 0, signal.SIGKILL)
        assert "StepFailed: load" in driver.finish()
        assert rig.live() == pair[0].number
        some_more(traffic)
        verdict = verdict_on(traffic.stop(), truth, separation(truth) / 3)
    assert (verdict.mixed, verdict.mislabelled, verdict.lost) == (0, 0, 0)
    assert all("ServerUnavailable" in error or "UnknownPipeline" in error for error in verdict.first_errors)
    assert "ended with -9" in rig.mends[0]
    assert list(rig.repository.manifests()) == [pair[0].number]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "state"), [("flip", "passed"), ("watch", "started")])
def test_a_server_that_dies_once_the_link_was_moved_ends_on_one_whole_release(
    shared_rig: Rig, pair: Pair, step: str, state: str
) -> None:
    rig, (live, other) = shared_rig, by_turns(shared_rig, pair)
    driver = rig.driver("upgrade", str(other.number), *UNLIKE)
    said = driver.after(step, state, lambda: os.kill(rig.server.pid or 0, signal.SIGKILL))
    assert "StepFailed: watch" in said, said
    assert rig.proven(live) == []
    assert list(rig.repository.manifests()) == [live.number]


@pytest.mark.long
@pytest.mark.parametrize("lost", [(7,), (1, 8)], ids=["flip", "way back"])
def test_a_connection_lost_at_the_seventh_load_leads_back_whole(
    shared_rig: Rig, pair: Pair, lost: tuple[int, ...]
) -> None:
    rig, (live, other) = shared_rig, by_turns(shared_rig, pair)
    with Relay([rig.server.http_url], NthLoads(*lost)) as relay:
        assert "StepFailed: flip" in rig.driver("upgrade", str(other.number), *UNLIKE, via=relay.url).finish()
    assert rig.proven(live) == []
    assert list(rig.repository.manifests()) == [live.number]


@pytest.mark.slow
def test_files_that_nobody_can_read_veto_nothing(shared_rig: Rig, pair: Pair, truth: Truth, tmp_path: Path) -> None:
    rig, (_, other) = shared_rig, by_turns(shared_rig, pair)
    plan = replace(LIGHT, grpc_url=rig.server.grpc_url, http_url=rig.server.http_url, bad_share=0.3)
    with Traffic(plan, tmp_path / "traffic.jsonl") as traffic:
        traffic.wait_for(5)
        driver = rig.driver("upgrade", str(other.number), *UNLIKE, "--canary-s", "2", "--watch-s", "3")
        assert driver.finish() == ""
        verdict = verdict_on(traffic.stop(), truth, separation(truth) / 3)
    assert verdict.clean, verdict
    told = re.search(r"of live requests (\d+) of \d+ failed .*?, (\d+) refused", driver.detail("watch"))
    assert told is not None
    failed, refused = int(told[1]), int(told[2])
    assert failed <= 2 < refused  # Triton counts a failure after its refusal: at the window's edges the two may part


@pytest.mark.long
def test_live_requests_that_begin_to_fail_lead_back(
    shared_rig: Rig, pair: Pair, tiny_state: State, tmp_path: Path
) -> None:
    """The release passes every check; then it wears out."""
    live, other = by_turns(shared_rig, pair)
    worn = faults.wears_out(tiny_state.releases, other, 150)
    with asked(shared_rig, tmp_path):
        said = shared_rig.driver("upgrade", str(worn.number), *UNLIKE, "--watch-s", "60").finish()
    assert re.search(r"StepFailed: watch .* of live requests \d+ of \d+ failed", " ".join(said.split())), said
    assert shared_rig.proven(live) == []


@pytest.mark.long
def test_a_live_release_that_answers_nan_is_left_for_a_sound_one(pair: Pair, tiny_state: State, tmp_path: Path) -> None:
    """However far the new one is from it."""
    broken = faults.changed_answers(tiny_state.releases, pair[0], "nan")
    with rig_on(broken, tmp_path, state=tiny_state.root) as rig:
        driver = rig.driver("upgrade", str(pair[1].number), "--canary-s", "0.5", "--watch-s", "0.5")
        assert driver.finish() == ""
        assert "which is live, fails its golden requests, so it is no measure" in driver.detail("preflight")
        assert rig.proven(pair[1]) == []


@pytest.mark.long
def test_steps_that_take_the_latest_version_mix_releases(rig: Rig, pair: Pair, truth: Truth, tmp_path: Path) -> None:
    """The trap that pins exist for: stages replaced one by one beneath pipelines that pin nothing."""
    repository, control = rig.repository, rig.server.control
    unpin(repository)
    for name in ("emotion_text", "emotion"):
        control.load(name)
    repository.add(pair[1])
    repository.load_only([pair[1].number])
    control.load("encode_text")
    with EmotionClient(rig.server.grpc_url) as client:
        items = traffic_items(LIGHT)
        index = next(i for i, item in enumerate(items) if list(item) == ["text"])
        came = list(client.predict(**items[index]).probabilities.values())
    for answers in truth.values():
        assert max(abs(a - b) for a, b in zip(came, answers[index], strict=True)) > separation(truth) / 3


@pytest.mark.long
def test_two_servers_move_together_or_not_at_all(rig: Rig, pair: Pair, tiny_state: State, tmp_path: Path) -> None:
    token = rig.server.options.control_token
    with rig_on(pair[0], tmp_path / "other", state=tiny_state.root, token=token) as other:
        both = [f"--server={one.server.grpc_url}={one.server.options.repository}" for one in (rig, other)]
        command = [sys.executable, "-m", "cmt_cli.main", "upgrade", *UNLIKE, *both, "--state", str(tiny_state.root)]
        environment = {**os.environ, "CMT_CONTROL_TOKEN": token}
        artefact = other.repository.version_folder("check", pair[0].manifest.stages["check"].version) / "model.py"
        sound = artefact.read_text()
        artefact.chmod(0o644)
        for change, status, number in (("# damaged\n", 1, pair[0].number), (sound, 0, pair[1].number)):
            artefact.write_text(change)
            done = subprocess.run(
                [*command, str(pair[1].number)], env=environment, capture_output=True, text=True, timeout=240
            )
            assert done.returncode == status, done.stdout + done.stderr
            # A Triton that died can't come back, with a file damaged.
            assert (rig.live(), other.live()) == (number, number), f"is the server running? {rig.mends + other.mends}"


@pytest.mark.long
def test_two_drivers_at_once(shared_rig: Rig, pair: Pair) -> None:
    rig, (_, other) = shared_rig, by_turns(shared_rig, pair)
    first = rig.driver("upgrade", str(other.number), *UNLIKE)
    for event in first.steps():
        if event["step"] == "preflight":
            break
    assert "RepositoryBusy" in rig.driver("rollback").finish()
    assert first.finish() == ""
    assert rig.live() == other.number


@pytest.mark.long
def test_a_rollback_of_what_was_retired_loads_it_again(shared_rig: Rig, pair: Pair) -> None:
    rig, (live, other) = shared_rig, by_turns(shared_rig, pair)
    assert rig.driver("upgrade", str(other.number), *UNLIKE).finish() == ""
    assert list(rig.repository.manifests()) == [other.number]
    assert rig.driver("rollback").finish() == ""
    assert rig.live() == live.number


@pytest.mark.long
def test_a_wrong_token_changes_nothing(shared_rig: Rig, pair: Pair, tiny_state: State) -> None:
    rig, (live, other) = shared_rig, by_turns(shared_rig, pair)
    command = [sys.executable, "-m", "cmt_cli.main", "upgrade", str(other.number), "--state", str(tiny_state.root)]
    command += ["--server", f"{rig.server.grpc_url}={rig.server.options.repository}", "--token", "wrong"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "PermissionDenied" in " ".join(done.stderr.split()) or "restricted" in done.stderr + done.stdout
    assert rig.live() == live.number
