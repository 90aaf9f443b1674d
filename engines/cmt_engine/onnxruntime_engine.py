"""ONNX Runtime on the CPU: runs the exported graph as it is, in fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime

from cmt_engine.engine import PRECISIONS, EngineError, EngineSidecar, Precision, sha256_of
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import Array, Arrays


class OnnxRuntimeEngine:
    """A session over an ONNX file."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, arrays), strict=True))


def engine_from_onnx(onnx_path: Path, stage: Stage, folder: Path, precision: Precision = "fp32") -> EngineSidecar:
    """Copies the graph and its weights into the stage version's folder."""
    if precision not in PRECISIONS["onnxruntime"]:
        raise EngineError(f"got precision {precision}; ONNX Runtime takes {', '.join(PRECISIONS['onnxruntime'])}")
    weights = onnx_path.with_name(onnx_path.name + ".data")
    for source in (onnx_path, weights):
        if source.exists():
            shutil.copyfile(source, folder / source.name)
    sidecar = EngineSidecar(
        stage=stage.name,
        engine="onnxruntime",
        precision=precision,
        model=onnx_path.name,
        onnx_sha256=sha256_of(*(p for p in (onnx_path, weights) if p.exists())),
        versions={"onnxruntime": onnxruntime.__version__},
        target={"device": "CPU"},
    )
    sidecar.write(folder)
    return sidecar
