"""What is measured: our pipeline, the baseline and peers, each a server of its own on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from cmt_perf.load_clients import Kind
from cmt_perf.monolith import monolith_on
from cmt_perf.peers.runtimes import RUNTIMES, Runtime, needs_graphs
from cmt_perf.processes import stop
from cmt_release.release import Release
from cmt_server.repository import InstallOptions, Repository
from cmt_server.server import ServerOptions, TritonServer, ports_for

Server = Literal["fastapi", "pytriton", "bentoml"]
SERVERS: tuple[Server, ...] = get_args(Server)
PIPELINE = "emotion"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.2


@dataclass(frozen=True)
class System:
    """A running server. pid: of its first process, whose descendants belong to it."""

    name: str
    kind: Kind
    url: str
    pid: int


@contextlib.contextmanager
def pipeline(
    name: str, release: Release, folder: Path, install: InstallOptions | None = None, trace: Path | None = None
) -> Iterator[System]:
    """Our ensemble on a release, with the tuning that `install` gives. trace: gets the times of its requests."""
    repository = folder / "repository"
    Repository(repository).install(release, install)
    options = ServerOptions(
        repository, folder / "server", http_port=0, grpc_port=0, metrics_port=0, pipelines=(PIPELINE,), trace=trace
    )
    with TritonServer(options) as server:
        yield System(name, "emotion", server.grpc_url, server.pid or 0)


@contextlib.contextmanager
def baseline(name: str, checkpoint: Path, folder: Path) -> Iterator[System]:
    """A checkpoint as one eager PyTorch model on Triton."""
    with monolith_on(checkpoint, folder) as server:
        yield System(name, "emotion", server.grpc_url, server.pid or 0)


def parts_of(peer: str) -> tuple[Server, Runtime]:
    """Of SERVER or SERVER:RUNTIME. ValueError for what is none."""
    server, _, runtime = peer.partition(":")
    if server not in SERVERS or (runtime or "eager") not in RUNTIMES:
        raise ValueError(
            f"peer: got {peer!r}; expected {', '.join(SERVERS)}, alone (eager PyTorch) or with what computes, "
            f"such as fastapi:compiled: {', '.join(RUNTIMES)}"
        )
    return server, cast(Runtime, runtime or "eager")


@contextlib.contextmanager
def peer(name: str, checkpoint: Path, folder: Path) -> Iterator[System]:
    """A checkpoint in a peer's server, as `parts_of` names it. RuntimeError when it isn't installed, or doesn't come
    up."""
    server, runtime = parts_of(name)
    for needed in (server, *((runtime,) if runtime == "torchao" else ())):
        if importlib.util.find_spec(needed) is None:
            raise RuntimeError(f"{needed} isn't installed; `pip install 'cmt-triton[peers]'`")
    if needs_graphs(checkpoint, runtime):
        _make_graphs(checkpoint, runtime)
    port, grpc_port = ports_for("127.0.0.1", (0, 0))
    command, environment, kind, url, ready = _PEERS[server](checkpoint, runtime, port, grpc_port)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "peer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    try:
        _wait_for(ready, process, log)
        yield System(name, kind, url, process.pid)
    finally:
        stop(process.pid, STOP_TIMEOUT_S)
        process.wait()


def _make_graphs(checkpoint: Path, runtime: Runtime) -> None:
    """In a process of its own, so that no memory of it stays with what measures."""
    command = [sys.executable, "-m", "cmt_perf.peers.runtimes", str(checkpoint), runtime]
    made = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if made.returncode:
        last = " | ".join(made.stderr.splitlines()[-5:])
        raise RuntimeError(f"{runtime}: making graphs of {checkpoint} ended with {made.returncode}: {last}")


_Start = tuple[list[str], Mapping[str, str], Kind, str, str]


def _fastapi(checkpoint: Path, runtime: Runtime, port: int, _: int) -> _Start:
    command = [sys.executable, "-m", "cmt_perf.peers.fastapi_peer", str(checkpoint), runtime, str(port)]
    return command, {}, "form", f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/ready"


def _pytriton(checkpoint: Path, runtime: Runtime, port: int, grpc_port: int) -> _Start:
    command = [
        sys.executable,
        "-m",
        "cmt_perf.peers.pytriton_peer",
        str(checkpoint),
        runtime,
        str(port),
        str(grpc_port),
    ]
    ready = f"http://127.0.0.1:{port}/v2/models/emotion/ready"
    # Its stub would take whatever libpython the system has, beside this Python's own library.
    environment = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    return command, environment, "tensors", f"grpc://127.0.0.1:{grpc_port}", ready


def _bentoml(checkpoint: Path, runtime: Runtime, port: int, _: int) -> _Start:
    service = "cmt_perf.peers.bentoml_peer:Emotion"
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
    told = {"CMT_BENCH_CHECKPOINT": str(checkpoint), "CMT_BENCH_RUNTIME": runtime}
    environment = told | {"BENTOML_DO_NOT_TRACK": "true"}
    return command, environment, "form", f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/readyz"


_PEERS = {"fastapi": _fastapi, "pytriton": _pytriton, "bentoml": _bentoml}


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=2)  # noqa: S310  # made above
            return
        if process.poll() is not None:
            break
        time.sleep(POLL_S)
    last = log.read_text(errors="replace").splitlines()[-5:]
    raise RuntimeError(f"{url} didn't come up; the end of {log}: {' | '.join(last)}")
