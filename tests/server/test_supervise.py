"""The supervisor: what dies is started again, and what dies again and again is given up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_client import EmotionClient, EmotionError, ServerUnavailable
from cmt_client.operations import IndexEntry
from cmt_pipeline.triton_config import DEFAULT_TUNING
from cmt_release.release import Release
from cmt_server.errors import GaveUp, ServerError
from cmt_server.repository import InstallOptions, Repository
from cmt_server.server import TritonServer
from cmt_server.supervise import MAX_RESTARTS, STAGE_RESTARTS, WINDOW_S, Supervisor, stage_processes
from serving import server_on


@pytest.fixture(scope="module")
def watched(tiny: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of this module's own: its processes get killed."""
    with server_on(tiny, tmp_path_factory.mktemp("watched")) as server:
        yield server


def answered(server: TritonServer) -> bool:
    try:
        with EmotionClient(server.grpc_url, retries=0) as client:
            client.predict(text="Hello?")
    except EmotionError:
        return False
    return True


def look_until(supervisor: Supervisor, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        supervisor.look()
        time.sleep(0.1)


def test_a_stage_whose_process_was_killed_is_started_again(watched: TritonServer) -> None:
    said: list[str] = []
    supervisor = Supervisor(watched, said.append)  # which never saw it alive
    processes = stage_processes(watched.pid or 0)
    assert {stage for stage, _ in processes} == {
        "preprocess", "check", "encode_image", "encode_audio", "encode_text", "fuse"
    }  # fmt: skip
    version = next(version for stage, version in processes if stage == "encode_text")
    for process in processes["encode_text", version]:
        os.kill(process, signal.SIGKILL)
    refused = pytest.raises(ServerUnavailable, match="not healthy")  # which a client with retries tries again
    with EmotionClient(watched.grpc_url, retries=0) as client, refused:
        client.predict(text="Hello?")
    look_until(supervisor, lambda: answered(watched))
    assert said == [f"a process of encode_text (version {version}) died; starting it again (1 of 3 within 600 s)"]
    untouched = {stage: found for stage, found in processes.items() if stage[0] != "encode_text"}
    assert untouched.items() <= stage_processes(watched.pid or 0).items()
    for _ in range(5):
        supervisor.look()
    assert len(said) == 1


@pytest.mark.long
def test_one_of_several_processes_of_a_stage_is_missed(tiny: Release, tmp_path: Path) -> None:
    """The others go on, and the requests that meet the dead one would fail for good."""
    two = InstallOptions(tuning={**DEFAULT_TUNING, "encode_text": replace(DEFAULT_TUNING["encode_text"], instances=2)})
    with server_on(tiny, tmp_path, two) as server:
        said: list[str] = []
        supervisor = Supervisor(server, said.append)
        supervisor.look()
        ((stage, processes),) = [(s, p) for s, p in stage_processes(server.pid or 0).items() if s[0] == "encode_text"]
        assert len(processes) == 2
        os.kill(processes[0], signal.SIGKILL)
        look_until(supervisor, lambda: bool(said) and len(stage_processes(server.pid or 0).get(stage, ())) == 2)
        for _ in range(5):
            supervisor.look()
        assert len(said) == 1


@pytest.mark.long
def test_a_server_that_was_killed_is_started_again_on_what_was_live(watched: TritonServer) -> None:
    said: list[str] = []
    supervisor = Supervisor(watched, said.append)
    supervisor.look()
    url = watched.grpc_url
    text = Repository(watched.options.repository).stages / "fuse" / "config.pbtxt"
    text.write_text(text.read_text().replace("versions: 1 }", "versions: 1 versions: 99 }"))  # an upgrade under way
    os.kill(watched.pid or 0, signal.SIGKILL)
    look_until(supervisor, lambda: len(said) > 1)
    assert "ended with -9" in said[0]
    assert said[1] == "the server answers again"
    assert watched.grpc_url == url
    assert answered(watched)
    assert watched.log.with_name(f"{watched.log.name}.1").exists()  # what the dead one said
    assert "versions: 99" not in text.read_text()


class Clock:
    """A clock of the test's own for the supervisor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("cmt_server.supervise.time.monotonic", lambda: self.now)

    def look(self, supervisor: Supervisor, seconds: int) -> None:
        """A look every half second."""
        for _ in range(seconds * 2):
            self.now += 0.5
            supervisor.look()


class Died(TritonServer):
    """A server that dies `lives` times, each time at the next look."""

    starts = 0
    lives = 1 << 30

    def check(self) -> None:
        if self.starts < self.lives:
            raise ServerError("it died")

    def start(self, progress: object = None) -> None:
        self.starts += 1

    def stop(self, drain: bool = True) -> None: ...


@pytest.fixture
def died(watched: TritonServer) -> Died:
    return Died(replace(watched.options, http_port=0, grpc_port=0, metrics_port=0))


def test_what_dies_again_and_again_is_given_up_aloud(died: Died, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    supervisor = Supervisor(died, said.append)
    clock = Clock(monkeypatch)
    with pytest.raises(GaveUp, match=f"it died; the server was started again {MAX_RESTARTS} times within 600 s"):
        clock.look(supervisor, 600)
    assert died.starts == MAX_RESTARTS
    waits = [line.partition("starting the server again ")[2].partition(" (")[0] for line in said if "died" in line]
    assert waits == ["now", "in 2 s", "in 4 s", "in 8 s", "in 16 s"]
    assert clock.now > 2 + 4 + 8 + 16


def test_deaths_far_apart_never_add_up(died: Died, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(died, lambda _: None)
    clock = Clock(monkeypatch)
    died.lives = 0
    monkeypatch.setattr(supervisor, "_restart_stages", lambda: "")
    for life in range(MAX_RESTARTS * 3):
        died.lives = life + 1
        clock.look(supervisor, 40)
        assert died.starts == life + 1
        clock.now += WINDOW_S / MAX_RESTARTS


def test_a_start_that_fails_counts_as_a_death(died: Died, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(progress: object = None) -> None:
        died.starts += 1
        raise ServerError("the port is taken")

    monkeypatch.setattr(died, "start", fail)
    with pytest.raises(GaveUp, match="the port is taken; the server was started again 5 times"):
        Clock(monkeypatch).look(Supervisor(died, lambda _: None), 600)
    assert died.starts == MAX_RESTARTS


@pytest.mark.long
def test_a_stage_that_keeps_dying_leads_to_a_restart_and_then_to_an_end(
    died: Died, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage killed every 20 s: each death is mended or counted, until it is given up, with an error."""
    said: list[str] = []
    processes: dict[tuple[str, int], list[int]] = {("fuse", 1): [1]}
    monkeypatch.setattr("cmt_server.supervise.stage_processes", lambda _: dict(processes))
    monkeypatch.setattr(died.control, "index", lambda: (IndexEntry("fuse", 1, "READY", ""),))
    monkeypatch.setattr(died.control, "load", lambda _: processes.update({("fuse", 1): [1]}))
    start = died.start
    monkeypatch.setattr(died, "start", lambda progress=None: (start(), processes.update({("fuse", 1): [1]})))
    died.lives = 0
    supervisor = Supervisor(died, said.append)
    monkeypatch.setattr(supervisor, "_repository", Untouched())
    monkeypatch.setattr(supervisor, "_processes_of", lambda _: 1)
    clock = Clock(monkeypatch)
    kills: list[float] = []

    def kill_every_20_s() -> None:
        while clock.now < 3600:
            clock.look(supervisor, 20)
            processes.clear()
            kills.append(clock.now)

    with pytest.raises(GaveUp, match=r"fuse \(version 1\) was started again 3 times and died again; the server was"):
        kill_every_20_s()
    assert died.starts == MAX_RESTARTS
    assert len(kills) == (STAGE_RESTARTS + 1) * (MAX_RESTARTS + 1)
    assert sum("starting it again" in line for line in said) == STAGE_RESTARTS * (MAX_RESTARTS + 1)


class Untouched:
    """A repository that nobody changes."""

    def live(self) -> None: ...
    def touch(self, stage: str, version: int) -> None: ...
    def starting(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def test_processes_of_other_servers_are_none_of_ours(tmp_path: Path) -> None:
    assert stage_processes(os.getpid()) == {}
