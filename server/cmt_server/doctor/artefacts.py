"""What lies in a model's version folders: its backend, whether it can load, what auto-complete makes of its batching.

Triton completes configurations unless it is started with --disable-auto-complete-config. Which backend a model has,
and which backends turn dynamic batching on, is as in the sources of Triton's core and of the backends.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from cmt_engine.plan_file import PLAN_FILE, Plan, read_plan

#: Their auto-complete adds dynamic_batching where max_batch_size is above 1 and no scheduler is chosen.
COMPLETING_BACKENDS = frozenset({"onnxruntime", "openvino", "paddle", "tensorflow", "tensorrt"})
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "tensorrt_plan": "tensorrt",
}
ARTEFACTS = {
    "model.graphdef": "tensorflow",
    "model.onnx": "onnxruntime",
    PLAN_FILE: "tensorrt",
    "model.pt": "pytorch",
    "model.py": "python",
    "model.savedmodel": "tensorflow",
    "model.xml": "openvino",
}
PYTHON_CALL = b"set_dynamic_batching"  # of a python model's auto_complete_config
MAX_CODE_BYTES = 1 << 20


def declared_backend(config: ModelConfig) -> str:
    """The backend that a configuration names, by whichever of its fields; "" if none does."""
    return str(config.backend or PLATFORMS.get(config.platform, "") or ARTEFACTS.get(config.default_model_filename, ""))


def completes_batching(config: ModelConfig, folder: Path, versions: Iterable[int]) -> bool:
    """Whether auto-complete may turn dynamic batching on for the model in this folder."""
    backend = _backend(config, folder, versions)
    if backend == "python":
        return any(_calls_for_batching(folder / str(version) / _code(config)) for version in versions)
    return backend in COMPLETING_BACKENDS


def without_model(config: ModelConfig, folder: Path, versions: Iterable[int]) -> tuple[int, ...]:
    """The versions whose folder has nothing to load. Backends that nobody here knows may need nothing."""
    backend = _backend(config, folder, versions)
    if backend == "python":
        return tuple(version for version in versions if not (folder / str(version) / _code(config)).exists())
    if backend in ARTEFACTS.values():
        return tuple(version for version in versions if _is_empty(folder / str(version)))
    return ()


def plans_in(folder: Path, versions: Iterable[int]) -> dict[int, Plan | str]:
    """What the TensorRT plans of these versions say of themselves, or why they can't be read."""
    found: dict[int, Plan | str] = {}
    for version in versions:
        path = folder / str(version) / PLAN_FILE
        try:
            if path.is_file():
                found[version] = read_plan(path)
        except (OSError, ValueError) as error:
            found[version] = str(error)
    return found


def _backend(config: ModelConfig, folder: Path, versions: Iterable[int]) -> str:
    """As declared, else by the artefact, else by the end of the model's name."""
    by_artefact = (_backend_of(folder / str(version)) for version in versions)
    return declared_backend(config) or next(filter(None, by_artefact), folder.name.rpartition(".")[2])


def _code(config: ModelConfig) -> str:
    return str(config.default_model_filename or "model.py")


def _is_empty(folder: Path) -> bool:
    """But for hidden files, by which git keeps a folder."""
    with os.scandir(folder) as entries:
        return all(entry.name.startswith(".") for entry in entries)


def _backend_of(version: Path) -> str:
    return next((backend for name, backend in ARTEFACTS.items() if (version / name).exists()), "")


def _calls_for_batching(code: Path) -> bool:
    if not code.is_file():
        return False
    with code.open("rb") as opened:
        return PYTHON_CALL in opened.read(MAX_CODE_BYTES)
