"""The supervisor: what dies is started again, and what dies again and again is given up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmt_client import EmotionClient, EmotionError, ServerUnavailable
from cmt_engine.engine import Precision
from cmt_release.release import Release
from cmt_server.errors import ServerError
from cmt_server.repository import Repository
from cmt_server.server import TritonServer
from cmt_server.supervise import MENDS, Supervisor, stage_processes
from serving import server_on


@pytest.fixture(scope="module")
def watched(
    release_of: Callable[[Precision], Release], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server of this module's own: its processes get killed."""
    with server_on(release_of("fp32"), tmp_path_factory.mktemp("watched")) as server:
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
    supervisor = Supervisor(watched, said.append)
    supervisor.look()
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
    assert said == [f"the process of encode_text (version {version}) died; starting it again"]
    untouched = {stage: found for stage, found in processes.items() if stage[0] != "encode_text"}
    assert untouched.items() <= stage_processes(watched.pid or 0).items()
    for _ in range(5):
        supervisor.look()
    assert len(said) == 1


def test_a_server_that_was_killed_is_started_again_on_what_was_live(watched: TritonServer) -> None:
    said: list[str] = []
    supervisor = Supervisor(watched, said.append)
    supervisor.look()
    url = watched.grpc_url
    text = Repository(watched.options.repository).stages / "fuse" / "config.pbtxt"
    text.write_text(text.read_text().replace("versions: 1 }", "versions: 1 versions: 99 }"))  # an upgrade under way
    os.kill(watched.pid or 0, signal.SIGKILL)
    look_until(supervisor, lambda: bool(said))
    assert "ended with -9" in said[0]
    assert watched.grpc_url == url
    assert answered(watched)
    assert "versions: 99" not in text.read_text()


def test_what_dies_again_and_again_is_given_up(watched: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(watched, lambda _: None)
    monkeypatch.setattr(watched, "check", lambda: (_ for _ in ()).throw(ServerError("it died")))
    monkeypatch.setattr(watched, "start", lambda: None)
    monkeypatch.setattr(watched, "stop", lambda drain: None)
    for _ in range(MENDS):
        supervisor.look()
    with pytest.raises(ServerError, match=f"it died; that was mended {MENDS} times in 600 s, giving up"):
        supervisor.look()


def test_processes_of_other_servers_are_none_of_ours(tmp_path: Path) -> None:
    assert stage_processes(os.getpid()) == {}
