"""Engines: how a compiled stage is described and run.

A stage version is a folder. Its `engine.json` (EngineSidecar) says what lies beside it and how it came to be; what
was compiled is opened by `open_engine`, in a test, in a parity check and inside Triton's python backend alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from cmt_pipeline.tensors import Array, Arrays

EngineName = Literal["openvino", "tensorrt", "onnxruntime"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: dict[EngineName, tuple[Precision, ...]] = {
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16"),
    "onnxruntime": ("fp32",),
}

SIDECAR_FILE = "engine.json"


class Engine(Protocol):
    """A compiled stage, ready to run."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Contract inputs [batch, ...] -> contract outputs [batch, ...]."""


class EngineError(RuntimeError):
    """An engine couldn't be built or opened; the message says why and how to go on."""


@dataclass(frozen=True)
class EngineSidecar:
    """engine.json: everything needed to run a compiled stage, and to tell whether it fits this machine.

    model: the file to open; target: what it was compiled for (GPU and compute capability, or the CPU's features);
    profile: axis lengths it was tuned for, tensor -> {min, opt, max} shapes with batch; parity: how far it is from
    PyTorch fp32 (a row of the parity table), empty where only another machine can run it.
    """

    stage: str
    engine: EngineName
    precision: Precision
    model: str
    onnx_sha256: str
    versions: Mapping[str, str]
    target: Mapping[str, str] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)

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


def open_engine(folder: Path, threads: int = 0) -> Engine:
    """The engine of a stage version. threads: 0 takes one for each core. Raises EngineError."""
    try:
        return _opened(EngineSidecar.read(folder), folder, threads)
    except (EngineError, ImportError):
        raise
    except Exception as error:  # every runtime raises kinds of its own
        raise EngineError(f"{folder} doesn't open as an engine: {type(error).__name__}: {error}") from error


def _opened(sidecar: EngineSidecar, folder: Path, threads: int) -> Engine:
    if sidecar.engine == "openvino":
        from cmt_engine.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(folder / sidecar.model, sidecar.precision, threads)
    if sidecar.engine == "onnxruntime":
        from cmt_engine.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folder / sidecar.model, threads)
    raise EngineError(
        f"{folder} holds a {sidecar.engine} engine; Triton's own {sidecar.engine} backend runs it on a GPU "
        "(--model-config-name tensorrt). On a CPU, export with --engine openvino."
    )
