"""Starting, stopping and dying of the real server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cmt_cli.serve import chosen_release
from cmt_cli.state import State
from cmt_client import EmotionClient, ServerUnavailable, ServiceError
from cmt_perf.faults import damaged
from cmt_release.release import Release, ReleaseError, open_release
from cmt_server import binary
from cmt_server.binary import find_tritonserver
from cmt_server.errors import ServerError
from cmt_server.repository import Repository
from cmt_server.server import ServerOptions, TritonServer
from serving import server_on


def long_sound() -> bytes:
    """16 s of noise: the longest sound there may be."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).standard_normal(256_000) / 8
    soundfile.write(buffer, noise, 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def descendants(pid: int) -> list[int]:
    """Live processes of the server's session: itself and its stubs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def server_of(supervisor: int) -> int:
    """The tritonserver that `cmt serve` started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = path.read_text().rsplit(")", 1)
            if int(fields.split()[1]) == supervisor and name.endswith("(tritonserver"):
                return int(path.parent.name)
    raise AssertionError(f"process {supervisor} has no tritonserver")


def regions() -> set[str]:
    """Memory regions of this process and of processes that have ended; another run may be at work beside this one."""
    found = {name for name in os.listdir("/dev/shm") if name.startswith("cmt-")}
    others = {name for name in found if name.split("-")[1] != str(os.getpid())}
    return found - {name for name in others if Path("/proc", name.split("-")[1]).exists()}


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def serve_command(release: Release, root: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """`cmt serve` on a copy of the release's store, as a process of its own; with what it wrote to server.json."""
    shutil.copytree(release.folder, root / "releases" / str(release.number), copy_function=os.link)
    command = [sys.executable, "-m", "cmt_cli.main", "serve", "--state", str(root)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert wait_until(lambda: (root / "server.json").exists() or process.poll() is not None, 120)
        assert process.poll() is None, process.stdout and process.stdout.read()
        yield process, json.loads((root / "server.json").read_text())
    finally:
        if process.poll() is None:
            process.terminate()  # killed, it would leave a server behind that takes its time to end
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_in_flight_finish_and_leaves_nothing(
    tiny: Release, tmp_path: Path, number: signal.Signals
) -> None:
    """Eight senders, each asking again as soon as it is answered, until it is refused."""
    before = regions()
    answered: list[tuple[float, float]] = []  # when sent, when answered
    refusals: list[ServiceError] = []
    asking: dict[int, float] = {}

    def at_work() -> bool:
        """A sender waits for half of a usual answer: the senders go in step, and between two of theirs nothing is."""
        usual_s = statistics.median(came - sent for sent, came in list(answered))
        return any(0.5 < (time.monotonic() - sent) / usual_s < 0.8 for sent in list(asking.values()))

    with serve_command(tiny, tmp_path) as (process, announced):
        assert stat.S_IMODE((tmp_path / "server.json").stat().st_mode) == 0o600  # it holds the token
        triton = server_of(process.pid)
        with EmotionClient(str(announced["grpc_url"]), retries=0) as client:
            senders = [threading.Thread(target=_ask_on, args=(client, answered, refusals, asking)) for _ in range(8)]
            for sender in senders:
                sender.start()
            assert wait_until(lambda: len(answered) > 16 and at_work())
            signalled = time.monotonic()
            process.send_signal(number)
            for sender in senders:
                sender.join(60)
            assert process.wait(60) == 0
    assert any(sent < signalled < came for sent, came in answered)
    # Every sender was refused in so many words; nobody was cut off while the server worked for it.
    assert len(refusals) == 8
    assert all(isinstance(error, ServerUnavailable) for error in refusals), refusals
    assert not descendants(triton)
    assert regions() <= before
    assert not (tmp_path / "server.json").exists()


def _ask_on(
    client: EmotionClient,
    answered: list[tuple[float, float]],
    refusals: list[ServiceError],
    asking: dict[int, float] | None = None,
) -> None:
    """asking: thread -> when it sent what isn't answered yet."""
    sound = long_sound()
    while not refusals:
        sent = time.monotonic()
        if asking is not None:
            asking[threading.get_ident()] = sent
        try:
            client.predict(audio=sound)
        except ServiceError as error:
            refusals.append(error)
            return
        answered.append((sent, time.monotonic()))
    refusals.append(ServerUnavailable("another was refused; this one asked no more"))


@pytest.mark.long
def test_a_killed_supervisor_takes_the_server_along(tiny: Release, tmp_path: Path) -> None:
    before = regions()
    with serve_command(tiny, tmp_path) as (process, _):
        triton = server_of(process.pid)
        assert descendants(triton)
        process.kill()
        process.wait()
        assert wait_until(lambda: not descendants(triton))
    assert regions() <= before


def stub_of(supervisor: int) -> subprocess.Popen[bytes]:
    """A process with the command line of a stage's: binary, model, memory region."""
    command = ["triton_python_backend_stub", "-", f"cmt-{supervisor}-1-region"]
    process = subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"import time; time.sleep(600)")
    process.stdin.close()
    return process


@pytest.mark.long
def test_what_a_supervisor_left_that_was_killed_while_it_loaded_is_cleaned_up(tiny: Release, tmp_path: Path) -> None:
    """Triton ends when its supervisor dies, but a stage that is just loading may stay behind."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, ours = stub_of(dead.pid), stub_of(os.getpid())
    try:
        with server_on(tiny, tmp_path):
            assert left.wait(10) == -signal.SIGKILL
            assert ours.poll() is None
    finally:
        for process in (left, ours):
            process.kill()
            process.wait()


@pytest.mark.long
def test_serve_starts_a_server_that_died_again_on_its_ports(tiny: Release, tmp_path: Path) -> None:
    with serve_command(tiny, tmp_path) as (process, announced):
        os.kill(server_of(process.pid), signal.SIGKILL)
        with EmotionClient(str(announced["grpc_url"]), retries=60) as client:
            assert client.predict(text="Hello?").release == tiny.number
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_was_live_is_served_again_though_a_newer_release_lies_there(tiny: Release, tmp_path: Path) -> None:
    """An upgrade may have turned the newer one down."""
    state = State(tmp_path)
    shutil.copytree(tiny.folder, state.releases / str(tiny.number))
    assert chosen_release(state, None).number == tiny.number  # nothing was served yet: the newest
    newer = damaged(state.releases, tiny).number
    assert chosen_release(state, None).number == newer
    Repository(state.repository).install(tiny)
    assert chosen_release(state, None).number == tiny.number
    assert chosen_release(state, newer).number == newer


@pytest.mark.long
def test_a_killed_server_is_noticed_and_cleaned_up_after(tiny: Release, tmp_path: Path) -> None:
    before = regions()
    server = server_on(tiny, tmp_path)
    server.start()
    pid = server.pid
    assert pid is not None
    answered: list[tuple[float, float]] = []
    errors: list[ServiceError] = []
    with EmotionClient(server.grpc_url, retries=0) as client:
        sender = threading.Thread(target=_ask_on, args=(client, answered, errors))
        sender.start()
        assert wait_until(lambda: len(answered) > 1)
        os.kill(pid, signal.SIGKILL)  # in the middle of a request
        sender.join(30)
    assert [type(error) for error in errors] == [ServerUnavailable]
    assert wait_until(lambda: _died(server))
    with pytest.raises(ServerError, match="ended with -9"):
        server.check()
    server.stop()
    assert not descendants(pid)
    assert regions() <= before


@pytest.mark.long
@pytest.mark.timeout(120)
def test_stopping_is_bounded_by_a_request_that_never_ends(
    tiny: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmt_server.server.EXIT_TIMEOUT_S", 2.0)
    before = regions()
    server = server_on(tiny, tmp_path, drain_timeout_s=1.0)
    server.start()
    pid = server.pid
    assert pid is not None
    family = descendants(pid)
    for process in set(family) - {pid}:
        os.kill(process, signal.SIGSTOP)  # its stages stand still
    errors: list[ServiceError] = []
    with EmotionClient(server.grpc_url, retries=0) as client:
        sender = threading.Thread(target=_ask_on, args=(client, [], errors))
        sender.start()
        time.sleep(0.5)  # until it is in flight
        server.stop()
        sender.join(30)
    assert [type(error) for error in errors] == [ServerUnavailable]
    assert not [process for process in family if Path(f"/proc/{process}").exists()]
    assert regions() <= before


def _died(server: TritonServer) -> bool:
    try:
        server.check()
    except ServerError:
        return True
    return False


@pytest.mark.long
def test_two_servers_on_one_state_folder(tiny: Release, tmp_path: Path) -> None:
    with serve_command(tiny, tmp_path):
        command = [sys.executable, "-m", "cmt_cli.main", "serve", "--state", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "another server runs on" in second.stderr


def test_a_damaged_release_is_never_served(tiny: Release, tmp_path: Path) -> None:
    store = tmp_path / "releases"
    shutil.copytree(tiny.folder, store / "1")
    weights = store / "1" / "stages" / "fuse" / "model.bin"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ReleaseError, match=r"model\.bin has sha256 .* the manifest says"):
        Repository(tmp_path / "repository").install(open_release(store))
    assert not (tmp_path / "repository").exists()


@pytest.mark.long
def test_a_stage_that_cant_load_says_why(tiny: Release, tmp_path: Path) -> None:
    server = server_on(tiny, tmp_path)
    model = next((tmp_path / "repository" / "stages" / "encode_text").glob("*/model.xml"))
    model.unlink()
    before = regions()
    with pytest.raises(ServerError, match=r"encode_text.*model\.xml"):
        server.start()
    assert server.pid is None
    assert regions() <= before


def test_everything_listens_on_this_machine_alone(server: TritonServer) -> None:
    ports = {server.http_port, server.grpc_port, server.metrics_port}
    listening = {}
    tables = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    for line in tables:
        address, state = line.split()[1], line.split()[3]
        host, port = address.split(":")
        if state == "0A" and int(port, 16) in ports:
            listening[int(port, 16)] = host
    assert set(listening) == ports
    assert all(host.endswith("0100007F") for host in listening.values())  # 127.0.0.1, mapped into IPv6 or not


def test_tritonserver_on_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "tritonserver"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_tritonserver(tmp_path / "work").path == script


def test_without_any_tritonserver_the_way_to_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match=re.escape('pip install "cmt-triton[serve]"')):
        find_tritonserver(tmp_path)


def test_numpy_2_is_refused_before_it_empties_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(ServerError, match="numpy<2"):
        binary.find_tritonserver(tmp_path)


@pytest.mark.triton
def test_a_server_that_hangs_in_its_crash_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As tritonserver does where the crash came with the allocator's lock taken: it says so, and stays."""
    script = tmp_path / "tritonserver"
    script.write_text("#!/bin/sh\necho 'Signal (11) received.'\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("cmt_server.server.CRASH_TIMEOUT_S", 0.1)
    options = ServerOptions(tmp_path, tmp_path / "work", http_port=0, grpc_port=0, metrics_port=0)
    with pytest.raises(ServerError, match="crashed and hung"):
        TritonServer(options).start()
