"""What would run a repository's models here: the Python of the python backend's stub and its NumPy, TensorRT."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from cmt_engine.plan_file import Plan
from cmt_engine.tensorrt_library import library_version, same_version
from cmt_server.binary import NUMPY_LIMIT, has_backend
from cmt_server.doctor.finding import Finding, Rule, Versions, finding
from cmt_server.doctor.repository import Model, Repository
from cmt_server.errors import ServerError

TIMEOUT_S = 10.0
ASK_NUMPY = "import importlib.metadata as m; print(m.version('numpy'))"
#: A model with this parameter brings a Python of its own.
OWN_ENVIRONMENT = "EXECUTION_ENV_PATH"

NUMPY_2 = Rule(
    "numpy-2-stub",
    "error",
    "The python backend's stub is built against NumPy 1: under NumPy 2 float outputs come empty or as an error about "
    "their size, and BYTES inputs kill it.",
    "Install numpy<2 for the Python that runs the stub, which is the first python3 on the server's PATH.",
    Versions(last=(2, 52)),
)


PLAN_MISFIT = Rule(
    "plan-of-another-tensorrt",
    "error",
    "Triton's tensorrt backend opens a plan in the very version of TensorRT that built it, and plans of TensorRT for "
    "RTX in none: the model doesn't load, nor does any ensemble above it.",
    "Build the plan again with the TensorRT of the server's image, or serve it in the image that has its TensorRT.",
)


@dataclass(frozen=True)
class StubEnvironment:
    """numpy: its version; old_server: whether it is known to be a Triton that the trap holds for."""

    python: str
    numpy: str
    old_server: bool = False


def stub_environment() -> StubEnvironment | None:
    """Of the tritonserver on PATH, else of the wheel's; None without either or without NumPy."""
    if shutil.which("tritonserver"):
        python = shutil.which("python3")
        numpy = _numpy_of(python) if python else ""
        return StubEnvironment(python, numpy) if python and numpy else None
    if importlib.util.find_spec("pytriton") is None:
        return None
    try:
        return StubEnvironment(sys.executable, importlib.metadata.version("numpy"), old_server=True)
    except importlib.metadata.PackageNotFoundError:
        return None


def numpy_2(repository: Repository, environment: StubEnvironment) -> Iterator[Finding]:
    """One finding for all models that run on this Python."""
    models = [model.name for model in repository.models.values() if _runs_on_stub(model)]
    major = environment.numpy.split(".")[0]
    if models and major.isdigit() and int(major) >= NUMPY_LIMIT:
        what = f"NumPy {environment.numpy} would run {', '.join(models)}"
        yield finding(NUMPY_2, environment.python, "", what)


def tensorrt_here() -> str | None:
    """The version of TensorRT that the tritonserver here runs plans with, "" if it runs none; None without a server."""
    with contextlib.suppress(ServerError):
        return (library_version() or "") if has_backend("tensorrt") else ""
    return None


def plan_misfits(repository: Repository, here: str | None) -> Iterator[Finding]:
    """Of models that Triton's tensorrt backend is to run. here: as of `tensorrt_here`."""
    for model in repository.models.values():
        for version, plan in model.plans.items() if model.is_tensorrt else ():
            fault = plan if isinstance(plan, str) else _misfit(plan, here)
            if fault:
                yield finding(PLAN_MISFIT, model.file, model.name, f"version {version}: {fault}")


def _misfit(plan: Plan, here: str | None) -> str:
    if plan.rtx:
        return f"the plan is TensorRT for RTX {plan.version}'s"
    if here is None or (here and same_version(plan.version, here)):
        return ""
    return f"the plan is TensorRT {plan.version}'s; {f'TensorRT {here}' if here else 'no TensorRT'} runs here"


def _runs_on_stub(model: Model) -> bool:
    return model.config.backend == "python" and OWN_ENVIRONMENT not in model.config.parameters


def _numpy_of(python: str) -> str:
    """Version of a Python's NumPy; "" when it has none or doesn't say."""
    try:
        answered = subprocess.run([python, "-c", ASK_NUMPY], capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answered.stdout.strip()
