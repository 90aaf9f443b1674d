"""OpenVINO on the CPU, in fp32, bf16 or int8.

bf16 is a way of computing that is set for the CPU plugin (AMX or AVX-512 where the CPU has them); the file holds fp32,
and says of what a logarithm is taken of (a spectrum) that it is computed in fp32 too.
int8 is NNCF's post-training quantisation of the matrix products, the rest in bf16: the graph itself carries the
quantisers that calibration data set. Weights take all eight bits where the processor adds up products in 32 (VNNI, AMX,
Arm); on others, where pairs of products are added up in 16 and saturate, they take seven.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from cmt_engine.cpu import sums_int8_in_16_bits
from cmt_engine.engine import Build, Engine, EngineError, EngineSidecar, Precision, Runner, Tolerance
from cmt_pipeline.stages import Stage
from cmt_pipeline.tensors import Array, Arrays

if TYPE_CHECKING:
    import openvino

MODEL_FILE = "model.xml"

#: In a sidecar's target, of int8: how many bits its weights take.
WEIGHTS, EIGHT_BITS, SEVEN_BITS = "int8_weights", "8 bits", "7 bits"

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


class OpenVino(Engine):
    name = "openvino"
    tolerances = {  # noqa: RUF012
        "fp32": Tolerance(relative=1e-4, probability=1e-4),
        "bf16": Tolerance(relative=5e-2, probability=4e-2),
        "int8": Tolerance(relative=1e-1, probability=1e-1),
    }
    packages = ("openvino", "nncf")
    runtime = "openvino"

    def compile(self, build: Build) -> EngineSidecar:
        """EngineError for int8 without calibration."""
        import openvino

        from cmt_engine.openvino_groups import join_small_groups

        target = self.target() if build.precision == "int8" else super().target()
        model = openvino.convert_model(str(build.onnx))
        if build.precision != "fp32":
            join_small_groups(model)
        if build.precision == "int8" and build.stage.kind == "fuse":
            # a few hundredths of the work, and the scores of its masked attention are wide
            build = replace(build, precision="bf16")
        if build.precision == "int8":
            model = _quantized(model, build.stage, build.calibration())
        _name_by_position(model)
        openvino.save_model(model, str(build.folder / MODEL_FILE), compress_to_fp16=False)
        _mark_fp32(build.folder / MODEL_FILE, _before_logarithms(model))
        used = self.packages if build.precision == "int8" else ("openvino",)
        made = self.sidecar(build, MODEL_FILE, {name: self.versions()[name] for name in used})
        return replace(made, target=target)

    def target(self) -> dict[str, str]:
        """Of int8 the bits of its weights too."""
        return super().target() | {WEIGHTS: _bits()}

    def misfits(self, versions: Mapping[str, str], target: Mapping[str, str]) -> list[str]:  # noqa: ARG002
        """int8 whose sums this processor doesn't hold."""
        if target.get(WEIGHTS) != EIGHT_BITS or _bits() == EIGHT_BITS:
            return []
        return [
            "its int8 weights are for processors that add up products in 32 bits (VNNI, AMX); this one has 16, which "
            "saturate, so that answers would be wrong: export it on a processor like this one, or serve bf16 or fp32"
        ]

    def faster_here(self, precision: Precision) -> str | None:
        """Of int8, without instructions for it."""
        if precision != "int8" or _bits() == EIGHT_BITS:
            return None
        return (
            "this processor has no VNNI or AMX, without which OpenVINO's int8 is slower than its fp32: encoders are "
            "faster by ONNX Runtime's here (--engine onnxruntime)"
        )

    def open(self, path: Path, precision: Precision, threads: int) -> Runner:
        return OpenVinoRunner(path, precision, threads)


class OpenVinoRunner:
    """A compiled model with one infer request."""

    def __init__(self, path: Path, precision: Precision, threads: int = 0) -> None:
        from cmt_engine.openvino_cpu import compile_for_cpu

        options = {
            "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # Pinning puts the threads of three encoder processes on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self._request = compile_for_cpu(path, options).create_infer_request()
        self._outputs = [output.any_name for output in self._request.model_outputs]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        # Inputs are read in place; outputs are copies, since the next run overwrites the request's own memory.
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        results = self._request.infer(arrays, share_inputs=True)
        return dict(zip(self._outputs, results.to_tuple(), strict=True))


def _bits() -> str:
    """Of int8 weights that suit this processor."""
    return SEVEN_BITS if sums_int8_in_16_bits() else EIGHT_BITS


def _quantized(model: openvino.Model, stage: Stage, calibration: Sequence[Arrays]) -> openvino.Model:
    if not calibration:
        raise EngineError(f"int8 needs calibration inputs for {stage.name}; got none")
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    from cmt_engine.openvino_cpu import signal_stack_kept
    from cmt_engine.openvino_feature_encoder import quantize_feature_encoder, turn_frames
    from cmt_engine.openvino_rows import MOST_OF_EIGHT_BITS, MOST_OF_SEVEN_BITS

    logging.getLogger("nncf").setLevel(logging.ERROR)
    half = _bits() == SEVEN_BITS
    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHED)
    # what one scale for all doesn't hold (`openvino_rows`), as little work as the rest that is kept
    of_convolutions = turn_frames(model) if stage.modality == "audio" else []
    with signal_stack_kept():
        quantized: openvino.Model = nncf.quantize(
            model,
            nncf.Dataset([dict(inputs) for inputs in calibration]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(
                names=[*of_convolutions, *_kept_products(model, stage), *_before_logarithms(model)],
                types=list(NOT_QUANTISED),
                validate=False,
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=smoothing,
                overflow_fix=OverflowFix.ENABLE if half else OverflowFix.DISABLE,
            ),
        )
    if stage.modality == "audio":
        quantize_feature_encoder(quantized, MOST_OF_SEVEN_BITS if half else MOST_OF_EIGHT_BITS)
    return quantized


def _kept_products(model: openvino.Model, stage: Stage) -> list[str]:
    """Matrix products of a text encoder that stay in bf16: of what a GELU gave, of two activations (attention), and the
    last, which brings features to the fusion's width: little work.

    In a BERT a few of a GELU's values are far beyond all others, and one scale for all leaves the rest a handful of
    steps: without these, MiniLM's features are off by 0.05 instead of 0.10. Attention with int8 scores is computed
    wrong at 32 tokens by OpenVINO 2026.4 on processors with AMX (features off by half).
    """
    if stage.modality != "text":
        return []
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [
        node.get_friendly_name()
        for node in products
        if node.input_value(0).get_node().get_type_name() == "Gelu"
        or node.input_value(1).get_node().get_type_name() != "Constant"
        or node is products[-1]
    ]


def _before_logarithms(model: openvino.Model) -> list[str]:
    """What a logarithm is taken of: the loudest and the faintest of a spectrum are orders of magnitude apart. Not what
    says where alone: patches that merge are counted, in places that all of the encoder decides."""
    found: dict[str, None] = {}
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Log"]
    while nodes:
        node = nodes.pop()
        if node.get_friendly_name() not in found:
            found[node.get_friendly_name()] = None
            nodes += [value.get_node() for value in node.input_values() if value.get_element_type().is_real()]
    return list(found)


def _mark_fp32(path: Path, names: Collection[str]) -> None:
    """Tells the CPU plugin to compute these nodes of a saved model in fp32, whatever the rest is computed in: by
    OpenVINO's attribute of nodes whose precision must not be converted, which its Python interface can't set."""
    if not names:
        return
    tree = ElementTree.parse(path)  # noqa: S314 - OpenVINO has just written it
    for layer in (layer for layer in tree.iter("layer") if layer.get("name") in names):
        if (told := layer.find("rt_info")) is None:
            layer.append(told := ElementTree.Element("rt_info"))
        ElementTree.SubElement(told, "attribute", name="precise", version="0")
    tree.write(path)


def _name_by_position(model: openvino.Model) -> None:
    """OpenVINO numbers nodes by a counter of the whole process: the same model would never be the same file twice."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


OPENVINO = OpenVino()
