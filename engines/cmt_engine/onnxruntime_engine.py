"""ONNX Runtime on the CPU: the exported graph as it is in fp32, or with its matrix products in int8.

int8 is ONNX Runtime's dynamic quantisation: weights have a scale for each column, activations one for the tensor, taken
as it comes. So no calibration is needed, and an answer moves within the tolerance with what shares its batch. Weights
are signed where the processor adds up products of int8 in 32 bits (VNNI, AMX, Arm). Else they are unsigned, of which
ONNX Runtime has products that don't saturate; without VNNI that is faster than OpenVINO's int8.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmt_engine.cpu import sums_int8_in_16_bits
from cmt_engine.engine import Build, Engine, EngineSidecar, Precision, Runner, Tolerance, graph_files
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import Array, Arrays

MODEL_FILE = "model.onnx"
#: In a sidecar's target, of int8: how its weights are stored.
WEIGHTS, SIGNED, UNSIGNED = "int8_weights", "signed", "unsigned"


class OnnxRuntime(Engine):
    name = "onnxruntime"
    tolerances = {  # noqa: RUF012
        "fp32": Tolerance(relative=1e-4, probability=1e-4),
        "int8": Tolerance(relative=1e-1, probability=1e-1),
    }
    packages = ("onnxruntime",)
    runtime = "onnxruntime"

    def compile(self, build: Build) -> EngineSidecar:
        """Of int8, the fusion stays in fp32: a few hundredths of the work."""
        if build.precision == "int8" and build.stage.kind != "fuse":
            _quantise(build.onnx, build.stage, build.folder / MODEL_FILE)
            return self.sidecar(build, MODEL_FILE)
        for source in graph_files(build.onnx):
            shutil.copyfile(source, build.folder / source.name)
        target = self.target() if build.precision == "int8" else super().target()
        return replace(self.sidecar(replace(build, precision="fp32"), build.onnx.name), target=target)

    def target(self) -> dict[str, str]:
        """Of int8 what its weights are too."""
        return super().target() | {WEIGHTS: _weights()}

    def misfits(self, versions: Mapping[str, str], target: Mapping[str, str]) -> list[str]:  # noqa: ARG002
        """int8 whose sums this processor doesn't hold."""
        if target.get(WEIGHTS) != SIGNED or _weights() == SIGNED:
            return []
        return [
            "its int8 weights are signed, for processors that add up products in 32 bits (VNNI, AMX); this one has 16, "
            "which saturate, so that answers would be wrong: export it on a processor like this one, or serve fp32"
        ]

    def open(self, path: Path, precision: Precision, threads: int) -> Runner:  # noqa: ARG002  # the graph says it
        return OnnxRuntimeRunner(path, threads)


class OnnxRuntimeRunner:
    """A session over an ONNX file."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Engines in other processes want the cores on which its threads would wait for work by spinning.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, arrays), strict=True))


def _weights() -> str:
    """Of int8, what suits this processor."""
    return UNSIGNED if sums_int8_in_16_bits() else SIGNED


def _quantise(graph: Path, stage: Stage, out: Path) -> None:
    """Products with weights. Convolutions stay in fp32: with one scale for all that Wav2Vec2's take in, the audio
    features of `base` are off by 0.4."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(
            graph,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8 if _weights() == SIGNED else QuantType.QUInt8,
            nodes_to_exclude=_between_widths(graph) if stage.modality == "text" else None,
            use_external_data_format=True,
        )


def _between_widths(graph: Path) -> list[str]:
    """Products that change a token's width, those of feed-forward nets: in a BERT a few of the values that go in are
    far beyond all others, and one scale for all leaves the rest a handful of steps. MiniLM's features would be off by
    0.16 instead of 0.06."""
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph
    shapes = {weight.name: weight.dims for weight in nodes.initializer}
    products = [node for node in nodes.node if node.op_type == "MatMul" and node.input[1] in shapes]
    return [node.name for node in products if shapes[node.input[1]][0] != shapes[node.input[1]][1]]


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Without its warning that a graph isn't optimised, which goes to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


ONNXRUNTIME = OnnxRuntime()
