"""Engines: one small class for each runtime of compiled stages, looked up by name in ENGINES.

A stage version is a folder. Its `engine.json` (EngineSidecar) says what lies beside it and how it came to be; what
was compiled is opened by `open_engine`, in a test, in a parity check and inside Triton's python backend alike.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from cmt_pipeline.registry import Registry
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import Array, Arrays

if TYPE_CHECKING:  # neither torch nor gRPC must load with this module
    import torch
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    from cmt_pipeline.triton_config import Served

#: `fp32`, `fp16`, `bf16`, `int8`, or what else an engine calls it; see `Engine.tolerances`.
Precision: TypeAlias = str

SIDECAR_FILE = "engine.json"


class EngineError(RuntimeError):
    """An engine couldn't be built or opened; the message says why and how to go on."""


@dataclass(frozen=True)
class Tolerance:
    """relative: RMS of the difference over RMS of the reference, of a stage; probability: largest absolute
    difference of any probability, of a pipeline. Both from PyTorch fp32.

    Set for trained weights, whose answers are steeper than random ones': the same error of a feature moves p further.
    """

    relative: float
    probability: float


class Runner(Protocol):
    """A compiled stage, ready to run."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Contract inputs [batch, ...] -> contract outputs [batch, ...]."""


def no_calibration() -> Sequence[Arrays]:
    """Of a build whose precision needs none."""
    return ()


@dataclass(frozen=True)
class Traceable:
    """What `torch.export.export` takes of a stage: module, inputs to trace with, and which of their sizes vary."""

    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    dynamic_shapes: Any


@dataclass(frozen=True)
class Build:
    """What an engine is to build into `folder`.

    source: the fp32 graph, an ONNX file with its weights beside it, or, of an engine that starts from PyTorch, what
    gives the stage's module; calibration: gives contract inputs to quantise by, or to measure ranges on; called where
    they are needed alone, since they take a while; cache: a folder that stays from one export to the next.
    """

    source: Path | Callable[[], Traceable]
    stage: Stage
    folder: Path
    precision: Precision
    calibration: Callable[[], Sequence[Arrays]] = no_calibration
    cache: Path | None = None

    @property
    def onnx(self) -> Path:
        """EngineError where a module came."""
        if isinstance(self.source, Path):
            return self.source
        raise EngineError(f"{self.stage.name} came as a PyTorch module; this engine starts from ONNX")

    @property
    def traceable(self) -> Traceable:
        """EngineError where a graph came."""
        if isinstance(self.source, Path):
            raise EngineError(
                f"{self.stage.name} came as ONNX ({self.source}); this engine compiles PyTorch modules: export with "
                "--engine openvino, onnxruntime or tensorrt"
            )
        return self.source()


@dataclass(frozen=True)
class EngineSidecar:
    """engine.json: everything needed to run a compiled stage, and to tell whether it fits this machine.

    model: the file to open; target: what it was compiled for (GPU and compute capability, or the CPU's features);
    profile: axis lengths it was tuned for, tensor -> {min, opt, max} shapes with batch; parity: how far it is from
    PyTorch fp32 (a row of the parity table), empty where only another machine can run it; onnx_sha256: empty where it
    came from PyTorch itself; fp32_tensors: those that stay in fp32 because samples showed that the precision doesn't
    hold them, and their largest magnitudes.
    """

    stage: str
    engine: str
    precision: Precision
    model: str
    onnx_sha256: str
    versions: Mapping[str, str]
    target: Mapping[str, str] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    fp32_tensors: Mapping[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        (folder / SIDECAR_FILE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> EngineSidecar:
        return cls(**json.loads((folder / SIDECAR_FILE).read_text()))


def sha256_of(*paths: Path) -> str:
    """SHA-256 over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def keep(draft: Path, folder: Path) -> None:
    """Gives a draft its name in a cache; that of an export which came first stays."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(draft)


def graph_files(onnx: Path) -> tuple[Path, ...]:
    """The graph, and its weights where they lie beside it."""
    weights = onnx.with_name(f"{onnx.name}.data")
    return (onnx, weights) if weights.exists() else (onnx,)


class Engine(ABC):
    """What runs compiled stages: how they are built, opened, held against PyTorch and served.

    Its module imports its runtime where it uses it, so that a look-up costs nothing. `tolerances` names its precisions;
    `packages` are the Python distributions that decide what it builds; artefacts belong to one version of `runtime`,
    the one of them that runs here; `variant` is the `--model-config-name` under which Triton finds `stage_config`, and
    `backend` Triton's own that then runs the stage: None where the python backend opens it in its own process;
    `starts_from` is what a Build's source is to be.
    """

    name: ClassVar[str]
    tolerances: ClassVar[Mapping[Precision, Tolerance]]
    packages: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[str | None] = None
    variant: ClassVar[str | None] = None
    backend: ClassVar[str | None] = None
    starts_from: ClassVar[Literal["onnx", "pytorch"]] = "onnx"

    @abstractmethod
    def compile(self, build: Build) -> EngineSidecar:
        """Writes what `open` takes into the folder, which exists; returns its sidecar (see `sidecar`)."""

    @abstractmethod
    def open(self, path: Path, precision: Precision, threads: int) -> Runner:
        """The compiled file of a stage. threads: 0 takes one for each core."""

    def build(self, build: Build) -> EngineSidecar:
        """ONNX -> a stage version's folder with its engine.json. ValueError for a precision that it doesn't have."""
        self.tolerance(build.precision)
        build.folder.mkdir(parents=True, exist_ok=True)
        sidecar = self.compile(build)
        sidecar.write(build.folder)
        return sidecar

    def tolerance(self, precision: Precision) -> Tolerance:
        """ValueError for a precision that it doesn't have."""
        if precision not in self.tolerances:
            raise ValueError(f"precision: got {precision!r}; {self.name} takes {', '.join(self.tolerances)}")
        return self.tolerances[precision]

    def closed_here(self) -> str | None:
        """Why `open` can't run on this machine what is built here, so that exports have no parity; None if it can."""
        return None

    def opens_here(self) -> bool:
        """Whether `open` can run on this machine what is built here."""
        return self.closed_here() is None

    def versions(self) -> dict[str, str]:
        """Whatever another version of would build something else. EngineError where it isn't installed."""
        try:
            return {name: importlib.metadata.version(name) for name in self.packages}
        except importlib.metadata.PackageNotFoundError as error:
            raise EngineError(
                f"{self.name} needs {error.name}, which isn't installed: pip install {error.name}"
            ) from None

    def target(self) -> dict[str, str]:
        """What a build is bound to besides versions."""
        return {"device": "CPU"}

    def never_served(self, versions: Mapping[str, str]) -> list[str]:  # noqa: ARG002
        """Why no server anywhere runs what these versions built, each with its mend."""
        return []

    def misfits(self, versions: Mapping[str, str], target: Mapping[str, str]) -> list[str]:  # noqa: ARG002
        """Why this machine can't serve what these versions built for this target, each with its mend."""
        return []

    def faster_here(self, precision: Precision) -> str | None:  # noqa: ARG002
        """What to export by instead on a machine like this one, and why; None where nothing is known."""
        return None

    def stage_config(self, stage: Stage, served: Served) -> ModelConfig:
        """The Triton configuration of a compiled stage under `variant`."""
        from cmt_pipeline.triton_config import stage_config

        return stage_config(stage, served)

    def sidecar(self, build: Build, model: str, versions: Mapping[str, str] | None = None) -> EngineSidecar:
        """Of a build into the file `model`."""
        return EngineSidecar(
            stage=build.stage.name,
            engine=self.name,
            precision=build.precision,
            model=model,
            onnx_sha256=sha256_of(*graph_files(build.source)) if isinstance(build.source, Path) else "",
            versions=self.versions() if versions is None else versions,
            target=self.target(),
        )


ENGINES: Registry[Engine] = Registry(
    "engine",
    "cmt_triton.engines",
    Engine,
    {
        "openvino": "cmt_engine.openvino_engine:OPENVINO",
        "tensorrt": "cmt_engine.tensorrt_engine:TENSORRT",
        "onnxruntime": "cmt_engine.onnxruntime_engine:ONNXRUNTIME",
        "aotinductor": "cmt_engine.aotinductor_engine:AOTINDUCTOR",
        "aotinductor_cuda": "cmt_engine.aotinductor_engine:AOTINDUCTOR_CUDA",
    },
)


def open_engine(folder: Path, threads: int = 0) -> Runner:
    """The engine of a stage version. threads: 0 takes one for each core. Raises EngineError."""
    try:
        sidecar = EngineSidecar.read(folder)
        return ENGINES[sidecar.engine].open(folder / sidecar.model, sidecar.precision, threads)
    except (EngineError, ImportError):
        raise
    except Exception as error:  # every runtime raises kinds of its own
        raise EngineError(f"{folder} doesn't open as an engine: {type(error).__name__}: {error}") from error
