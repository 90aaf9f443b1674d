"""`cmt serve` as a process: how it starts, is interrupted, is refused and ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import httpx
import pytest

from cmt_cli.serve import limits_from, log_level_from, quantiles_from
from cmt_cli.show import expected_errors, fail
from cmt_cli.signals import Stopped, stop_signal
from cmt_pipeline.logs import configure_logging
from cmt_release.release import Release
from cmt_server.errors import GaveUp
from cmt_server.server import TritonServer
from cmt_server.triton_log import log_line
from small_releases import make, rewrite

pytestmark = pytest.mark.triton

FREE = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


def command(state: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "cmt_cli.main", "serve", "--state", str(state), *more]


def serve(state: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`cmt serve` that is expected to end by itself."""
    environment = {**os.environ, **variables}
    return subprocess.run(command(state, *more), capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture
def folder(tiny: Release, tmp_path: Path) -> Path:
    """A state folder with one release."""
    shutil.copytree(tiny.folder, tmp_path / "releases" / str(tiny.number), copy_function=os.link)
    return tmp_path


def family(supervisor: int) -> list[int]:
    """Live processes whose memory regions are named for the supervisor: tritonserver and its stages'."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_text().split("\0")
            if any(f"cmt-{supervisor}-" in argument for argument in arguments):
                found.append(int(process.name))
    return found


def test_plans_that_cant_run_here_are_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    release = make(tmp_path / "releases")
    info = replace(release.manifest.info, engine="tensorrt")
    manifest = replace(release.manifest, info=info, versions={"tensorrt_rtx": "1.7.1.116"})
    rewrite(release.folder / "manifest.json", manifest.to_json().encode())
    ran = serve(tmp_path, *FREE)
    assert ran.returncode == 1
    said = " ".join(ran.stderr.split())
    assert "release 1 can't be served here: its plans are TensorRT for RTX 1.7.1.116's, which no backend of" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["releases"]


MOMENTS = {
    "as it reads the release": lambda state, pid: (state / "serve.lock").exists(),
    "as tritonserver starts": lambda state, pid: bool(family(pid)),
    "as stages load": lambda state, pid: len(family(pid)) > 2,
}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_startup_can_be_interrupted(folder: Path, moment: str, number: signal.Signals) -> None:
    """Nothing is left behind. What the end waits for is bounded: nothing drains, tritonserver is killed."""
    process = subprocess.Popen(command(folder, *FREE), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while not MOMENTS[moment](folder, process.pid):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert not family(process.pid)
    assert not list(Path("/dev/shm").glob(f"cmt-{process.pid}-*"))
    assert not (folder / "server.json").exists()


@pytest.mark.long
def test_a_gateway_comes_with_it_and_goes_with_it(folder: Path) -> None:
    """And is started again when it dies."""
    serving = subprocess.Popen(
        command(folder, *FREE, "--gateway", "--gateway-port", "0"), stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert serving.stderr is not None
    try:
        url = next_gateway(serving.stderr)
        answer = httpx.post(f"{url}/v1/emotion", json={"text": "hello"}, headers={"X-Timeout-Ms": "30000"}, timeout=60)
        assert answer.json()["modalities"] == ["text"]
        (gateway,) = [p for p in children_of(serving.pid) if "\0gateway\0" in Path(f"/proc/{p}/cmdline").read_text()]
        os.kill(gateway, signal.SIGKILL)
        again = next_gateway(serving.stderr)
        assert httpx.get(f"{again}/livez").status_code == 200
        serving.send_signal(signal.SIGTERM)
        threading.Thread(target=serving.stderr.read, daemon=True).start()
        assert serving.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{again}/livez")
    finally:
        serving.terminate()
        serving.wait(60)


def next_gateway(lines: IO[str]) -> str:
    """The URL that is said next."""
    for line in lines:
        if found := re.search(r"gateway (http://\S+) before", line):
            return found[1]
    raise AssertionError("no gateway")


def children_of(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize("variables", [{}, {"CMT_CONTROL_TOKEN": "shared"}])
def test_a_second_server_on_taken_ports_harms_nobody(
    folder: Path, server: TritonServer, variables: dict[str, str]
) -> None:
    ports = ["--http-port", str(server.http_port), "--grpc-port", "0", "--metrics-port", "0"]
    second = serve(folder, *ports, **variables)
    assert second.returncode == 1
    assert f"HTTP port {server.http_port} of 127.0.0.1 can't be had: another process listens there" in second.stderr
    assert "Traceback" not in second.stderr
    assert not (folder / "server.json").exists()
    assert server.control.ready("emotion")


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--http-port", "99999"], "HTTP port: got 99999"),
        (["--limit", "max_audio_s=nan"], "expected whole numbers or seconds above 0"),
        (["--drain-timeout-s", "-1"], "drain_timeout_s: got -1"),
        (["--tls-key", "key.pem"], "expected both --tls-certificate and --tls-key"),
    ],
)
def test_options_that_make_no_sense_exit_with_2(folder: Path, options: list[str], message: str) -> None:
    refused = serve(folder, *options)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


def test_the_wheels_triton_is_not_for_others(folder: Path) -> None:
    refused = serve(folder, "--host", "0.0.0.0", *FREE)
    assert refused.returncode == 1
    told = " ".join(refused.stderr.split())
    assert "CVE-2025-23310" in told
    assert "--expose-vulnerable-triton" in told


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Path]:
    """A file system with no room for a repository."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "cmt-test", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mounts here: {mounted.stderr.decode()}")
    (disk / "releases").symlink_to(folder / "releases")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="root may mount")
def test_a_disk_that_is_full_or_read_only_is_one_message(full_disk: Path) -> None:
    full = serve(full_disk, *FREE)
    assert full.returncode == 1
    assert "No space left on device" in " ".join(full.stderr.split())
    subprocess.run(["mount", "-o", "remount,ro", full_disk], check=True)
    read_only = serve(full_disk, *FREE)
    assert read_only.returncode == 1
    assert "Read-only file system" in " ".join(read_only.stderr.split())
    assert "Traceback" not in full.stderr + read_only.stderr


def test_what_was_given_up_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(GaveUp("it died")) == 3
    assert capsys.readouterr().err == "GaveUp: it died\n"


def test_an_error_of_the_system_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(expected_errors()) as raised:
        (tmp_path / "absent" / "file").write_text("")
    assert fail(raised.value) == 1
    assert " ".join(capsys.readouterr().err.split()).startswith("FileNotFoundError: No such file or directory: /")


def test_a_signal_is_looked_at_or_interrupts() -> None:
    with stop_signal() as stop:
        stop.check()
        with pytest.raises(Stopped), stop.at_once():
            signal.raise_signal(signal.SIGINT)
        assert stop.wait(0)
        signal.raise_signal(signal.SIGTERM)  # a second one interrupts nothing
        with pytest.raises(Stopped):
            stop.check()
        with pytest.raises(Stopped), stop.at_once():
            pass


def test_a_storm_of_signals_stops_once_and_nothing_hangs() -> None:
    """Signals come within each other's handlers: Ctrl-C reaches a whole group, whose leader passes on its own."""
    with stop_signal() as stop:
        storm = subprocess.Popen(
            ["bash", "-c", f"for _ in $(seq 1000); do kill -INT {os.getpid()}; kill -TERM {os.getpid()}; done"]
        )
        try:
            while storm.poll() is None:
                for _ in range(10_000):
                    stop.wait(0.001)
        finally:
            storm.kill()
            storm.wait()
        assert stop.wait(0)


@pytest.mark.parametrize("pair", ["max_audio_s=nan", "max_audio_s=inf", "max_audio_s=0", "max_text_bytes=-5"])
def test_a_limit_is_a_finite_size(pair: str) -> None:
    with pytest.raises(ValueError, match="expected whole numbers or seconds above 0"):
        limits_from([pair])


def test_quantiles_and_levels_are_read() -> None:
    assert quantiles_from("0.5, 0.99") == (0.5, 0.99)
    assert quantiles_from("") == ()
    assert log_level_from("warning") == ("warning", 0)
    assert log_level_from("verbose=2") == ("info", 2)
    with pytest.raises(ValueError, match="got 'p99'"):
        quantiles_from("p99")
    with pytest.raises(ValueError, match="got 'verbose=x'"):
        log_level_from("verbose=x")


def test_tritons_lines_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    log_line('E1125 21:45:31.403763 32443 grpc_server.cc:2558] "no such model"')
    log_line("a line of its own")
    configure_logging()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("error", "no such model"),
        ("info", "a line of its own"),
    ]
    assert lines[0]["source"] == "grpc_server.cc:2558"
