"""OpenVINO on the CPU, in fp32, bf16 or int8.

bf16 is a way of computing that the CPU plugin is told of (AMX or AVX-512 where the CPU has them); the file holds fp32.
int8 is NNCF's post-training quantisation of the matrix products, the rest in bf16: the graph itself carries the
quantisers that calibration data set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino

from cmt_export.engine import EngineError, EngineSidecar, Precision, sha256_of
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import Array, Arrays

MODEL_FILE = "model.xml"

#: What the CPU plugin computes in, where the graph doesn't say int8.
INFERENCE_PRECISION: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


#: Matrix products gain from int8 without harm, and one convolution (`_left_alone`). Left to itself, NNCF also quantises
#: the additions of attention masks, the statistics of Wav2Vec2's GroupNorm and its convolutions over raw sound, whose
#: ranges eight bits can't hold: seen on random weights, the audio features then have nothing to do with the reference
#: (relative error 1.2).
NOT_QUANTISED = (
    *("Add", "Subtract", "Multiply", "Divide", "Power", "Sqrt"),
    *("ReduceSum", "ReduceMean", "MVN", "Concat"),
)

#: How much of the activations' outliers SmoothQuant moves into the weights (Xiao et al. 2022, arXiv 2211.10438); of
#: 0.5, 0.8 and NNCF's own 0.95 this is the nearest to the reference for MiniLM.
SMOOTHED = 0.8
SMOOTHED_CONVOLUTION = 0.95  # its channels differ more than those of a LayerNorm


class OpenVinoEngine:
    """A compiled model with one infer request."""

    def __init__(self, path: Path, precision: Precision, threads: int = 0) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # Pinning puts the threads of three encoder processes on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self._request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
        self._outputs = [output.any_name for output in self._request.model_outputs]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        # Inputs are read in place; outputs are copies, since the next run overwrites the request's own memory.
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        results = self._request.infer(arrays, share_inputs=True)
        return dict(zip(self._outputs, results.to_tuple(), strict=True))


def engine_from_onnx(
    onnx_path: Path, stage: Stage, folder: Path, precision: Precision, calibration: Sequence[Arrays] = ()
) -> EngineSidecar:
    """Compiles into the stage version's folder. calibration: contract inputs to quantise by, for int8."""
    if precision not in INFERENCE_PRECISION:
        raise EngineError(f"precision {precision} came; OpenVINO takes {', '.join(INFERENCE_PRECISION)}")
    model = openvino.convert_model(str(onnx_path))
    if precision == "int8" and stage.kind == "fuse":
        precision = "bf16"  # a hundredth of the work, and the scores of its masked attention are wide
    if precision == "int8":
        model = _quantized(model, stage, calibration)
    _name_by_position(model)
    openvino.save_model(model, str(folder / MODEL_FILE), compress_to_fp16=False)
    weights = onnx_path.with_name(onnx_path.name + ".data")
    sidecar = EngineSidecar(
        stage=stage.name,
        engine="openvino",
        precision=precision,
        model=MODEL_FILE,
        onnx_sha256=sha256_of(*(p for p in (onnx_path, weights) if p.exists())),
        versions={
            "openvino": openvino.__version__.split("-")[0],
            **({"nncf": _nncf()} if precision == "int8" else {}),
        },
        target={"device": "CPU"},
    )
    sidecar.write(folder)
    return sidecar


def _quantized(model: openvino.Model, stage: Stage, calibration: Sequence[Arrays]) -> openvino.Model:
    if not calibration:
        raise EngineError(f"int8 needs calibration inputs for {stage.name}; none came")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHED, convolution=SMOOTHED_CONVOLUTION)
    return nncf.quantize(
        model,
        nncf.Dataset([dict(inputs) for inputs in calibration]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=_left_alone(model, stage), types=list(NOT_QUANTISED), validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
    )


def _left_alone(model: openvino.Model, stage: Stage) -> list[str]:
    """Operations that stay as they are.

    Text: products of what a GELU lets through. In a BERT a few of its values are far beyond all others, and one scale
    for all leaves the rest a handful of steps: without these, MiniLM's features are off by 0.05 instead of 0.10.

    Every convolution but Wav2Vec2's second, which is half the work of its feature encoder and reads what a GroupNorm
    has brought to one range. Frames of silence suffer most, since a LayerNorm follows: of a random `base`, that one
    adds 0.04 to the error of the features, the second and third together 0.08, all six 0.40.
    """
    nodes = model.get_ordered_ops()
    convolutions = [n for n in nodes if n.get_type_name() in ("Convolution", "GroupConvolution")]
    alone = [n for i, n in enumerate(convolutions) if (stage.modality, i) != ("audio", 1)]
    if stage.modality == "text":
        products = [node for node in nodes if node.get_type_name() == "MatMul"]
        alone += [n for n in products if n.input_value(0).get_node().get_type_name() == "Gelu"]
    return [node.get_friendly_name() for node in alone]


def _name_by_position(model: openvino.Model) -> None:
    """OpenVINO numbers nodes by a counter of the whole process: the same model would never be the same file twice."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _nncf() -> str:
    import nncf

    return str(nncf.__version__)
