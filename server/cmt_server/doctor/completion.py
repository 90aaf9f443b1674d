"""What Triton's auto-complete makes of a configuration's batching before the model runs.

Triton completes configurations unless it is started with --disable-auto-complete-config. Which backend a model has,
and which backends turn dynamic batching on, is as in the sources of Triton's core and of the backends.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

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
    "model.plan": "tensorrt",
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
    places = [folder / str(version) for version in versions]
    backend = declared_backend(config) or next((_backend_of(place) for place in places), "")
    if backend == "python":
        return any(_calls_for_batching(place / (config.default_model_filename or "model.py")) for place in places)
    return backend in COMPLETING_BACKENDS


def _backend_of(version: Path) -> str:
    return next((backend for name, backend in ARTEFACTS.items() if (version / name).exists()), "")


def _calls_for_batching(code: Path) -> bool:
    if not code.is_file():
        return False
    with code.open("rb") as opened:
        return PYTHON_CALL in opened.read(MAX_CODE_BYTES)
