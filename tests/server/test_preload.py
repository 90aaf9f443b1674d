"""Clients that go away in mid-request harm neither the server nor anybody else."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmt_client import AsyncEmotionClient, Overloaded
from cmt_perf.traffic import TrafficPlan, traffic_items
from cmt_release.release import Release
from cmt_server.preload import DELETE, FUNCTION, MACHINES, RECORD_BYTES, RECORDS_KEPT, shared_object, write_preload
from cmt_server.server import TritonServer
from serving import server_on

CANCELLED = 500
AT_ONCE = 6


def test_the_library_loads_and_its_function_returns_null(tmp_path: Path) -> None:
    library = write_preload(tmp_path / "work")
    assert library is not None
    function = getattr(ctypes.CDLL(str(library)), FUNCTION)
    function.restype = ctypes.c_void_p
    assert function(ctypes.c_void_p(1234)) is None
    assert [path.name for path in library.parent.iterdir()] == [library.name]


def test_a_process_finds_it_by_its_name(tmp_path: Path) -> None:
    """As Triton's gRPC front end does, through the dynamic linker."""
    library = write_preload(tmp_path)
    call = (
        f"import ctypes; cancel = ctypes.CDLL(None).{FUNCTION}; cancel.restype = ctypes.c_void_p; print(cancel(1234))"
    )
    ran = subprocess.run([sys.executable, "-c", call], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True)
    assert ran.stdout == "None\n", ran.stderr


KEEPS_FREED_RECORDS = f"""
import ctypes
process = ctypes.CDLL(None)
process.malloc.restype = ctypes.c_void_p
delete = getattr(process, "{DELETE}")
new = lambda size: process.malloc(ctypes.c_size_t(size))
free = lambda block, size: delete(ctypes.c_void_p(block), ctypes.c_size_t(size))

other = new(3000)
free(other, 3000)
print("another size is reused:", new(3000) == other)
held = [new({RECORD_BYTES}) for _ in range({2 * RECORDS_KEPT})]
for block in held:
    free(block, {RECORD_BYTES})
again = {{new({RECORD_BYTES}) for _ in range({2 * RECORDS_KEPT})}}
print("kept ones are reused:", bool(again & set(held[-{RECORDS_KEPT}:])))
print("older ones are reused:", bool(again & set(held[:{RECORDS_KEPT}])))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="known on x86-64 alone")
def test_freed_records_keep_their_addresses_for_a_while(tmp_path: Path) -> None:
    library = write_preload(tmp_path)
    environment = {"LD_PRELOAD": str(library), "GLIBC_TUNABLES": "glibc.malloc.tcache_count=1000"}
    command = [sys.executable, "-c", KEEPS_FREED_RECORDS]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [
        "another size is reused: True",
        "kept ones are reused: False",
        "older ones are reused: True",
    ], ran.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_has_a_sound_file(machine: str) -> None:
    made = shared_object(machine)
    assert made[:4] == b"\x7fELF"
    assert int.from_bytes(made[18:20], "little") == MACHINES[machine].number
    assert MACHINES[machine].cancel in made
    assert MACHINES[machine].hide in made


def test_an_unknown_machine_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert write_preload(tmp_path) is None


#: What may become of a request in the flood, beside an answer: cancelled by its caller, or too many at once.
ENDS = (asyncio.TimeoutError, Overloaded)


@pytest.fixture
def server(tiny: Release, tmp_path: Path) -> Iterator[TritonServer]:
    """One of its own, which doesn't drain for long: Triton leaks one cancelled request in some thousand."""
    with server_on(tiny, tmp_path, drain_timeout_s=1.0) as running:
        yield running


@pytest.mark.slow
def test_the_server_outlives_requests_that_are_cancelled(server: TritonServer) -> None:
    """Without the library it dies of a segmentation fault after some hundred of these."""
    items = traffic_items(TrafficPlan(server.grpc_url, server.http_url, items=28, audio_s=1.0))
    moments = random.Random(0)

    async def flood() -> tuple[int, int]:
        cancelled = 0
        async with AsyncEmotionClient(server.grpc_url, retries=0) as client:
            while cancelled < CANCELLED:
                asked = [
                    asyncio.wait_for(client.predict(**items[moments.randrange(28)]), moments.uniform(0.001, 0.1))
                    for _ in range(AT_ONCE)
                ]
                for became in await asyncio.gather(*asked, return_exceptions=True):
                    assert not isinstance(became, Exception) or isinstance(became, ENDS), became
                    cancelled += isinstance(became, asyncio.TimeoutError)
        async with AsyncEmotionClient(server.grpc_url, retries=20) as client:  # what was cancelled is still being done
            answered = [await client.predict(**item) for item in items]
        return cancelled, len(answered)

    pid = server.pid
    cancelled, answered = asyncio.run(flood())
    assert cancelled >= CANCELLED
    assert answered == len(items)
    server.check()
    assert server.pid == pid
