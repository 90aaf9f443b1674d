"""A real tritonserver on tiny python-backend models: for tests that reproduce a trap of Triton's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt_pipeline.constants import CONTROL_HEADER
from cmt_server.binary import TritonBinary, find_tritonserver

REGIONS = Path("/dev/shm")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

#: The sum of whatever inputs came, plus the parameters `add` and `add_version` times the version; after `sleep_ms`, and
#: `add_first` more the first time. Version `broken` fails to load.
MODEL = """
import json, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        value = lambda name: float(config["parameters"].get(name, {"string_value": "0"})["string_value"])
        if value("broken") == float(args["model_version"]):
            raise RuntimeError("broken on purpose")
        self.add, self.sleep_s = value("add"), value("sleep_ms") / 1000
        self.add += value("add_version") * float(args["model_version"])
        self.add_first = value("add_first")
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        time.sleep(self.sleep_s)
        came = [pb.get_input_tensor_by_name(request, name) for name in self.inputs]
        total = sum(tensor.as_numpy() for tensor in came if tensor is not None) + self.add + self.add_first
        self.add_first = 0
        total = np.ascontiguousarray(total, dtype=np.float32)
        wanted = [name for name in self.outputs if name in request.requested_output_names()]
        return pb.InferenceResponse([pb.Tensor(name, total) for name in wanted])
"""


def write_model(repository: Path, name: str, config: str, versions: Sequence[int] = (1,)) -> Path:
    """A model's folder; a python-backend one unless the configuration says otherwise."""
    folder = repository / name
    folder.mkdir(parents=True, exist_ok=True)
    for version in versions:
        (folder / str(version)).mkdir(exist_ok=True)
        if 'platform: "ensemble"' not in config:
            (folder / str(version) / "model.py").write_text(MODEL)
    (folder / "config.pbtxt").write_text(config)
    return folder


def python_model(
    inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("y",), more: str = "", dims: int = 1, **parameters: float
) -> str:
    """config.pbtxt of a model that runs MODEL."""
    lines = ['backend: "python"', more]
    lines += [f'input {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} optional: true }}' for name in inputs]
    lines += [f'output {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} }}' for name in outputs]
    lines += [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items()]
    return "\n".join([*lines, "instance_group { kind: KIND_CPU }"])


@dataclass(frozen=True)
class Step:
    """A step of an ensemble; tensors of the model -> tensors of the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    version: int | None = 1


def ensemble(
    steps: Sequence[Step], inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("y",), more: str = ""
) -> str:
    """config.pbtxt of an ensemble; an input whose name ends in "?" is optional."""
    lines = ['platform: "ensemble"', more]
    for name in inputs:
        optional = " optional: true" if name.endswith("?") else ""
        lines.append(f'input {{ name: "{name.rstrip("?")}" data_type: TYPE_FP32 dims: 1{optional} }}')
    lines += [f'output {{ name: "{name}" data_type: TYPE_FP32 dims: 1 }}' for name in outputs]
    lines.append("ensemble_scheduling {")
    for step in steps:
        version = "" if step.version is None else f" model_version: {step.version}"
        maps = [f'input_map {{ key: "{k}" value: "{v}" }}' for k, v in step.inputs.items()]
        maps += [f'output_map {{ key: "{k}" value: "{v}" }}' for k, v in step.outputs.items()]
        lines.append(f'  step {{ model_name: "{step.model}"{version} {" ".join(maps)} }}')
    return "\n".join([*lines, "}"])


@dataclass
class TinyServer:
    """A tritonserver on 127.0.0.1; a context manager.

    token: what its restricted APIs want, if they want one; completes: whether it completes configurations.
    """

    repository: Path
    work: Path
    flags: Sequence[str] = ()
    token: str = ""
    completes: bool = False

    def __post_init__(self) -> None:
        self.ports = _free_ports(3)
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.log = self.work / "tritonserver.log"
        self._regions = f"cmt-{os.getpid()}-{self.ports[0]}-"

    def __enter__(self) -> TinyServer:
        self.work.mkdir(parents=True, exist_ok=True)
        binary = find_tritonserver(self.work)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(binary.path), *self._arguments(binary)],
                env={**os.environ, **binary.environment, "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=self.work,  # where a crash may leave its core
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_live()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                time.sleep(0.02)
        for region in REGIONS.glob(f"{self._regions}*"):
            region.unlink(missing_ok=True)

    def wait_live(self) -> None:
        """Until the server answers: with its models loaded, or having failed to."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.ask("/v2/health/live")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text(errors="replace")[-4000:])

    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, path: str, body: object = None, timeout_s: float = 30.0) -> tuple[int, Any]:
        """Status and JSON of a GET, or of a POST of `body`. OSError if the connection fails."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {CONTROL_HEADER: self.token})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                text, status = response.read(), response.status
        except urllib.error.HTTPError as error:
            text, status = error.read(), error.code
        return status, json.loads(text) if text else None

    def infer(self, model: str, outputs: Sequence[str] = (), timeout_s: float = 30.0, **inputs: Any) -> tuple[int, Any]:
        """Status, then each output's data or the error's text. An input: its numbers, or (shape, numbers)."""
        tensors = []
        parameters = inputs.pop("parameters", {})
        for name, value in inputs.items():
            shape, data = value if isinstance(value, tuple) else ([1], [value])
            tensors.append({"name": name, "datatype": "FP32", "shape": shape, "data": data})
        body = {"inputs": tensors, "parameters": parameters, "outputs": [{"name": name} for name in outputs]}
        status, answer = self.ask(f"/v2/models/{model}/infer", body, timeout_s)
        if status != 200:
            return status, answer["error"]
        return status, {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}

    def load(self, model: str) -> tuple[int, Any]:
        return self.ask(f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str) -> tuple[int, Any]:
        return self.ask(f"/v2/repository/models/{model}/unload", {})

    def settled(self, model: str) -> str:
        """State of a model's only version, once it is no longer UNLOADING; that after a second."""
        for _ in range(50):
            state = next(entry.get("state", "") for entry in self.index() if entry["name"] == model)
            if state != "UNLOADING":
                break
            time.sleep(0.02)
        return state

    def counts(self, model: str, items: int = 0) -> tuple[int, int]:
        """How many items a model has computed, and in how many batches; waits until they are `items` at least.

        Triton counts a batch after it has sent the batch's answers, so whoever has the answer may come too early.
        """
        for _ in range(100):
            statistics = self.ask(f"/v2/models/{model}/stats")[1]["model_stats"]
            computed = sum(version["inference_count"] for version in statistics)
            batches = sum(version["execution_count"] for version in statistics)
            if computed >= items:
                break
            time.sleep(0.05)
        return computed, batches

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[2]}/metrics", timeout=10) as response:
            return str(response.read().decode())

    def index(self) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = self.ask("/v2/repository/index", {})[1]
        return entries

    def _arguments(self, binary: TritonBinary) -> Iterator[str]:
        http, grpc, metrics = self.ports
        yield f"--model-repository={self.repository}"
        for service, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
            yield f"--{service}-address=127.0.0.1"
            yield f"--{service}-port={port}"
        yield "--exit-timeout-secs=1"
        yield "--exit-on-error=false"
        if not self.completes:
            yield "--disable-auto-complete-config"
        yield f"--backend-config=python,shm-region-prefix-name={self._regions}"
        yield f"--cache-directory={binary.path.parent.parent / 'caches'}"
        if self.token:
            yield f"--http-restricted-api=model-repository,shared-memory:{CONTROL_HEADER}={self.token}"
        yield from (*binary.arguments, *self.flags)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
