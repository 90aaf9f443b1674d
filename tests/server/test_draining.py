"""A server that is told to stop, after an upgrade: what was let in is answered, what comes is refused so as to be tried
again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmt_client import EmotionClient, ServerUnavailable
from cmt_release.release import Release
from cmt_rollout.server_target import ServerTarget
from cmt_server.draining import in_flight
from cmt_server.repository import Repository
from cmt_server.server import TritonServer
from cmt_server.supervise import stage_processes
from serving import server_on

pytestmark = pytest.mark.triton

EACH = 5  # requests in flight over either protocol; admission lets twelve wait
TIMEOUT_S = 60.0


def upgraded(server: TritonServer, release: Release) -> None:
    target = ServerTarget(server.grpc_url, Repository(server.options.repository), server.options.control_token)
    live = target.live()
    target.load(release)
    target.flip(release.number, live)
    target.end_trial()
    target.retire((release.number,), TIMEOUT_S)
    target.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
def test_what_was_let_in_is_answered_and_what_comes_is_refused(tinies: tuple[Release, Release], tmp_path: Path) -> None:
    """`fuse` stands still meanwhile. After an upgrade, since Triton then calls pipelines unloaded that are at work."""
    server = server_on(tinies[0], tmp_path, drain_timeout_s=TIMEOUT_S)
    with (
        server,
        ThreadPoolExecutor(3) as pool,
        EmotionClient(server.grpc_url, retries=0) as grpc,
        EmotionClient(server.http_url, retries=0) as http,
    ):
        upgraded(server, tinies[1])
        process = stage_processes(server.pid or 0)["fuse", tinies[1].manifest.stages["fuse"].version][0]
        os.kill(process, signal.SIGSTOP)
        try:
            work, host, port = server.options.work, server.options.host, server.metrics_port
            before = in_flight(work, host, port).told
            asked = [
                pool.submit(client.predict_many, [{"text": "Hello?"}] * EACH, concurrency=EACH, errors="raise")
                for client in (grpc, http)
            ]
            wait_for(lambda: in_flight(work, host, port).told >= before + 2 * EACH)  # all were let in
            wait_for(lambda: in_flight(work, host, port).requests > 0)  # and some wait for the others' batch
            stopped = pool.submit(server.stop)
            wait_for((work / "draining").exists)
            for client in (grpc, http):
                with pytest.raises(ServerUnavailable, match="draining"):
                    client.predict(text="Hello?")
            assert not stopped.done()
        finally:
            os.kill(process, signal.SIGCONT)
        for answers in asked:
            assert [answer.digest for answer in answers.result()] == [tinies[1].digest] * EACH
        stopped.result()
        assert server.pid is None
