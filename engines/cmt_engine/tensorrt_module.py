"""TensorRT's Python module, whichever flavour is here, and what it calls back: a log, a progress monitor.

`tensorrt` 10 and 11 build on the GPU that will run the engine. `tensorrt_rtx` (TensorRT for RTX) has the same
builder API and needs no GPU to build; Triton's TensorRT backend doesn't run its plans.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from cmt_engine.engine import EngineError
from cmt_engine.gpu import Gpu, find_gpus
from cmt_pipeline.progress import Progress

Flavour = Literal["auto", "tensorrt", "tensorrt_rtx"]

OLDEST = 10  # the first with INT64 inputs and outputs


PIP_LINES = {
    "tensorrt": 'pip install "cmt-triton[tensorrt]"',
    "tensorrt_rtx": 'pip install "cmt-triton[tensorrt-rtx]"',
}


@dataclass(frozen=True)
class TensorRt:
    """module: `tensorrt` or `tensorrt_rtx`; gpu: what it builds for, None for RTX, which takes targets."""

    module: Any
    rtx: bool
    gpu: Gpu | None = None

    @property
    def name(self) -> str:
        return "tensorrt_rtx" if self.rtx else "tensorrt"

    @property
    def version(self) -> str:
        return str(self.module.__version__)


def load_tensorrt(
    flavour: Flavour,
    find: Callable[[str], ModuleType | None] | None = None,
    gpus: Callable[[], tuple[Gpu, ...]] = find_gpus,
) -> TensorRt:
    """The flavour that was asked for. `auto`: TensorRT if it is here and a GPU too, else TensorRT for RTX.

    EngineError where it isn't installed, or where TensorRT is and no GPU. find and gpus: stand-ins for tests.
    """
    find = find or _find
    full = find("tensorrt") if flavour in ("auto", "tensorrt") else None
    if full and int(full.__version__.split(".")[0]) < OLDEST:
        raise EngineError(f"got TensorRT {full.__version__}, expected {OLDEST} or later: {PIP_LINES['tensorrt']}")
    gpu = next(iter(gpus()), None) if full else None
    if full and gpu:
        return TensorRt(full, rtx=False, gpu=gpu)
    rtx = find("tensorrt_rtx") if flavour in ("auto", "tensorrt_rtx") else None
    if rtx:
        return TensorRt(rtx, rtx=True)
    if full:
        raise EngineError(
            f"TensorRT {full.__version__} is here, but CUDA shows no GPU, and it builds an engine on the GPU "
            "that will run it. Run this on that machine (in a container: with --gpus all), or try the build "
            f"here with TensorRT for RTX, which needs no GPU: {PIP_LINES['tensorrt_rtx']}"
        )
    expected = PIP_LINES if flavour == "auto" else {flavour: PIP_LINES[flavour]}
    raise EngineError(f"{' and '.join(expected)} not installed: {' or '.join(expected.values())}")


def network_flags(module: Any) -> int:
    """Flags for a strongly typed network. TensorRT 10 must be asked, 11 has no other and ignores the flag."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


@functools.cache
def log_of(module: Any) -> Any:
    """The one log of a module (TensorRT keeps the first that it is given): `errors` holds what went wrong."""

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(message.strip())

    return Log()


class BuildProgress:
    """Nested phases -> one fraction that never falls.

    An exception of the callback, and a Ctrl-C that lands in it, may not cross into TensorRT: it is kept in
    `failure`, and the next step is answered with False, which stops the build.
    """

    def __init__(self, report: Progress | None) -> None:
        self.failure: BaseException | None = None
        self._report = report
        self._phases: dict[str, list[int]] = {}  # phase -> steps done, steps; outermost first
        self._reached = 0.0

    def start(self, phase: str, steps: int) -> None:
        self._phases[phase] = [0, max(steps, 1)]
        self._notify()

    def step(self, phase: str, step: int) -> bool:
        if phase in self._phases:
            self._phases[phase][0] = step + 1
        self._notify()
        return self.failure is None

    def finish(self, phase: str) -> None:
        self._phases.pop(phase, None)

    def end(self) -> None:
        """Says that all is done. Raises what stopped the build."""
        self._phases = {"Built": [1, 1]}
        self._notify()
        if self.failure is not None:
            raise self.failure

    def _notify(self) -> None:
        fraction = 0.0
        for done, steps in reversed(self._phases.values()):
            fraction = min(1.0, (done + fraction) / steps)
        self._reached = max(self._reached, fraction)
        try:
            if self._report is not None and self.failure is None:
                self._report(next(reversed(self._phases), ""), self._reached)
        except BaseException as error:
            self.failure = error


def monitor_of(module: Any, progress: BuildProgress) -> Any:
    """IProgressMonitor over a BuildProgress."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package is there, a library it loads isn't
        return None
