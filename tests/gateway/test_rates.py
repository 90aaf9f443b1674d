"""Callers' requests counted together in a real Redis, and by each replica while it is away."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cmt_gateway.options import GatewayOptions
from cmt_gateway.problems import Refused
from cmt_gateway.rates import Rates
from gateways import asking

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no Redis is installed: apt-get install redis-server"
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def redis(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            while b"Ready to accept" not in process.stdout.readline():
                assert process.poll() is None
            yield process
        finally:
            process.kill()


async def let_in(rates: Rates, who: str = "shop") -> bool:
    try:
        await rates.check(who)
    except Refused as error:
        return error.status != 429
    return True


@needs_redis
def test_replicas_count_together_and_alone_while_redis_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr("cmt_gateway.rates.AWAY_S", 0.2)

    async def session() -> None:
        one, other = (Rates("3/minute", f"redis://127.0.0.1:{port}") for _ in range(2))
        with redis(port, tmp_path) as first:
            assert [await let_in(rates) for rates in (one, other, one, other, one)] == [True, True, True, False, False]
            assert await let_in(other, "school")
            first.send_signal(signal.SIGSTOP)  # it hangs: nobody waits for it
            assert [await let_in(one) for _ in range(4)] == [True, True, True, False]
            first.send_signal(signal.SIGCONT)
        assert [await let_in(other) for _ in range(4)] == [True, True, True, False]
        await asyncio.sleep(0.2)
        with redis(port, tmp_path):
            assert [await let_in(rates) for rates in (one, other, one, other)] == [True, True, True, False]

    asyncio.run(session())


def test_a_gateway_works_while_redis_is_away() -> None:
    client, _ = asking(rate="2/minute", rate_storage=f"redis://127.0.0.1:{free_port()}")
    assert [client.post("/v1/emotion", json={"text": "a"}).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("storage", ["mongodb://u:secret@host", "async+redis://host", "", "redis"])
def test_another_store_is_refused_without_its_password(storage: str) -> None:
    with pytest.raises(ValueError, match="expected memory or redis://host:port") as raised:
        asking(rate_storage=storage)
    assert "secret" not in str(raised.value)


def test_memory_is_the_default() -> None:
    assert GatewayOptions().rate_storage == "memory"
