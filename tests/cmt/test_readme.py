"""The README's commands and code run as they stand, against the session's server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cmt_cli.state import RunningServer, State
from cmt_engine.engine import Precision
from cmt_release.release import Release
from cmt_server.server import TritonServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

#: Blocks until Ctrl-C; tests/server/test_lifecycle.py runs it.
SERVE = "cmt serve"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def environment(server: TritonServer, state: State, release_of: Callable[[Precision], Release]) -> dict[str, str]:
    """As a newcomer's shell, with the session's server where `cmt serve` would have put its own."""
    release_of("bf16")  # what the README exports; shared with other tests
    metrics = f"http://127.0.0.1:{server.metrics_port}/metrics"
    state.announce(RunningServer(os.getpid(), server.http_url, server.grpc_url, metrics, "unused"))
    binaries = Path(sys.executable).parent
    return {**os.environ, "CMT_STATE": str(state.root), "PATH": f"{binaries}:{os.environ['PATH']}"}


def on_ports_of(server: TritonServer, text: str) -> str:
    for usual, port in ((8000, server.http_port), (8001, server.grpc_port), (8002, server.metrics_port)):
        text = text.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{port}")
    return text


@pytest.mark.parametrize("command", [c for c in commands() if c != SERVE])
def test_commands_run(server: TritonServer, environment: dict[str, str], command: str) -> None:
    ran = subprocess.run(
        on_ports_of(server, command),
        shell=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout or "ready" in command


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_code_runs(server: TritonServer, environment: dict[str, str], code: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", on_ports_of(server, code)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_the_readme_says_what_is_tested() -> None:
    assert SERVE in commands()
    assert len(commands()) >= 7
    assert len(blocks("python")) >= 3
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", README, re.MULTILINE):
        assert target in targets
