"""Commands and code of the README and of docs/ run as they stand, against the session's server, or are parsed."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import command_lines
from cmt_cli.state import RunningServer, State
from cmt_pipeline.constants import TOKEN_VARIABLE
from cmt_server.server import TritonServer
from doc_blocks import LANGUAGES, PAGES, ROOT, TARGETS, Block, blocks, check
from gateways import running

#: Of tritonserver, perf_analyzer, curl and base64.
OPTIONS_OF_OTHERS = {"--id", "--input-data", "--data-binary", "--decode", "--replay"}
OPTIONS_OF_OTHERS |= {"--rm", "--force", "--grace-period", "--entrypoint"}
#: Blocks until Ctrl-C; tests/server/test_lifecycle.py runs it.
SERVE = "cmt serve"
COMMANDS = sorted({line for block in blocks("sh") for line in block.lines} - {SERVE})
CONSOLE = sorted({line for block in blocks("console") for line in block.lines})
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 44


@pytest.fixture(scope="module")
def environment(server: TritonServer, state: State) -> dict[str, str]:
    """As a newcomer's shell, with the session's server where `cmt serve` would have put its own."""
    metrics = f"http://127.0.0.1:{server.metrics_port}/metrics"
    state.announce(RunningServer(os.getpid(), server.http_url, server.grpc_url, metrics, "unused"))
    binaries = Path(sys.executable).parent
    path = f"{binaries}:{os.environ['PATH']}"
    return {**os.environ, "CMT_STATE": str(state.root), "PATH": path, TOKEN_VARIABLE: server.options.control_token}


def on_ports_of(server: TritonServer, text: str) -> str:
    for usual, port in ((8000, server.http_port), (8001, server.grpc_port), (8002, server.metrics_port)):
        text = text.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{port}")
    return text


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Iterator[str]:
    """HOST:PORT of a gateway before it."""
    with running("--triton", server.grpc_url, "--timeout-s", "30") as (url, _):
        yield url.removeprefix("http://")


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(server: TritonServer, environment: dict[str, str], gateway: str, command: str) -> None:
    ran = subprocess.run(
        on_ports_of(server, command).replace("127.0.0.1:8080", gateway),
        shell=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout or "ready" in command


@pytest.mark.long
@pytest.mark.parametrize("block", [block for block in blocks("python") if not block.needs], ids=str)
def test_code_runs(server: TritonServer, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(TOKEN_VARIABLE, server.options.control_token)
    exec(compile(on_ports_of(server, block.text), str(block), "exec"), {"__name__": "__main__"})


def run_by(command: list[str], text: str) -> None:
    """Text on the standard input of a command that has to succeed and say something."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, input=text, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in blocks("python") if block.needs], ids=str)
def test_code_with_a_package_of_its_own_runs(server: TritonServer, block: Block) -> None:
    python = ROOT / ".cmt" / block.needs / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{block.needs} isn't installed; `make .cmt/{block.needs}/bin/python`")
    run_by([str(python), "-"], on_ports_of(server, block.text))


@pytest.mark.skipif(shutil.which("node") is None, reason="node isn't installed")
@pytest.mark.parametrize("block", blocks("js"), ids=str)
def test_node_runs(server: TritonServer, block: Block) -> None:
    run_by(["node", "--input-type=module", "-"], on_ports_of(server, block.text))


@pytest.mark.skipif(shutil.which("go") is None, reason="go isn't installed")
@pytest.mark.parametrize("block", blocks("go"), ids=str)
def test_go_runs(server: TritonServer, tmp_path: Path, block: Block) -> None:
    (tmp_path / "main.go").write_text(on_ports_of(server, block.text))
    run_by(["go", "run", str(tmp_path / "main.go")], "")


@pytest.mark.long
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(
    server: TritonServer,
    gateway: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: Path,
) -> None:
    url = f"http://{gateway}" if "127.0.0.1:8080" in path.read_text() else server.grpc_url
    monkeypatch.setattr(sys, "argv", [str(path), url, "0.5"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_examples_are_numbered_and_short() -> None:
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    assert all(len(path.read_text().splitlines()) < MOST_LINES for path in EXAMPLES)


@pytest.mark.long
@pytest.mark.parametrize("line", CONSOLE)
def test_what_isnt_run_parses(line: str) -> None:
    check(line)


def test_what_doesnt_exist_is_refused() -> None:
    for line in ("cmt serve --sing", "make coffee", "pip install '.[cheese]'", "kubectl apply -k k8s/nowhere", "rm x"):
        with pytest.raises(BaseException):  # noqa: B017, PT011  # the assertion, or the parser's own
            check(line)


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in blocks()} <= LANGUAGES
    assert SERVE in {line for block in blocks("sh") for line in block.lines}
    for block in blocks("yaml"):
        assert yaml.safe_load(block.text)


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_targets_in_the_text_are_there(page: Path) -> None:
    commands = [command_lines.root(), *(command for _, command in command_lines.verbs())]
    known = (
        {"--help"} | OPTIONS_OF_OTHERS | {option for command in commands for p in command.params for option in p.opts}
    )
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert named <= known
    assert set(re.findall(r"`make ([a-z][\w-]*)", text)) <= TARGETS
