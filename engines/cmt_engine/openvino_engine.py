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

from cmt_engine.engine import EngineError, EngineSidecar, Precision, sha256_of
from cmt_engine.openvino_feature_encoder import quantize_feature_encoder
from cmt_engine.openvino_groups import join_small_groups
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import Array, Arrays

MODEL_FILE = "model.xml"

#: What the CPU plugin computes in, where the graph doesn't say int8.
INFERENCE_PRECISION: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


#: Matrix products gain from int8 without harm. Left to itself, NNCF also quantises the additions of attention masks,
#: the statistics of Wav2Vec2's GroupNorm and its convolutions, whose ranges eight bits with one scale can't hold:
#: seen on random weights, the audio features then have nothing to do with the reference (relative error 1.2).
NOT_QUANTISED = (
    *("Add", "Subtract", "Multiply", "Divide", "Power", "Sqrt", "Convolution", "GroupConvolution"),
    *("ReduceSum", "ReduceMean", "MVN", "Concat"),
)

#: How much of the activations' outliers SmoothQuant moves into the weights (Xiao et al. 2022, arXiv 2211.10438); of
#: 0.5, 0.8 and NNCF's own 0.95 this is the nearest to the reference for MiniLM.
SMOOTHED = 0.8


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
        raise EngineError(f"got precision {precision}; OpenVINO takes {', '.join(INFERENCE_PRECISION)}")
    model = openvino.convert_model(str(onnx_path))
    if precision != "fp32":
        join_small_groups(model)
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
        raise EngineError(f"int8 needs calibration inputs for {stage.name}; got none")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHED)
    quantized: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset([dict(inputs) for inputs in calibration]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(
            names=_products_of_gelu(model, stage), types=list(NOT_QUANTISED), validate=False
        ),
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
    )
    if stage.modality == "audio":
        quantize_feature_encoder(quantized)
    return quantized


def _products_of_gelu(model: openvino.Model, stage: Stage) -> list[str]:
    """A text encoder's stay in bf16. In a BERT a few of their values are far beyond all others, and one scale for all
    leaves the rest a handful of steps: without these, MiniLM's features are off by 0.05 instead of 0.10."""
    if stage.modality != "text":
        return []
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [n.get_friendly_name() for n in products if n.input_value(0).get_node().get_type_name() == "Gelu"]


def _name_by_position(model: openvino.Model) -> None:
    """OpenVINO numbers nodes by a counter of the whole process: the same model would never be the same file twice."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _nncf() -> str:
    import nncf

    return str(nncf.__version__)
