"""ONNX Runtime on the CPU: runs the exported graph as it is, in fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from cmt_engine.engine import Build, Engine, EngineSidecar, Precision, Runner, Tolerance, graph_files
from cmt_pipeline.tensors import Array, Arrays


class OnnxRuntime(Engine):
    name = "onnxruntime"
    tolerances = {"fp32": Tolerance(relative=1e-4, probability=1e-4)}  # noqa: RUF012
    packages = ("onnxruntime",)
    runtime = "onnxruntime"

    def compile(self, build: Build) -> EngineSidecar:
        """Copies the graph and its weights."""
        for source in graph_files(build.onnx):
            shutil.copyfile(source, build.folder / source.name)
        return self.sidecar(build, build.onnx.name)

    def open(self, path: Path, precision: Precision, threads: int) -> Runner:  # noqa: ARG002  # it has but one
        return OnnxRuntimeRunner(path, threads)


class OnnxRuntimeRunner:
    """A session over an ONNX file."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, arrays), strict=True))


ONNXRUNTIME = OnnxRuntime()
