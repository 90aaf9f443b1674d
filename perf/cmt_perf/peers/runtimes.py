"""How a peer computes a checkpoint: what a team reaches for after eager PyTorch, each by its own documentation.

eager        PyTorch, fp32
compiled     torch.compile with frozen weights, in bf16 where the processor multiplies that faster
torchao      the same, with int8 weights in its linear layers and activations that are quantised as they come
onnxruntime  int8 by dynamic quantisation, as Optimum's configurations for AVX2 and AVX512-VNNI
openvino     int8 by NNCF's defaults for transformers, from 32 generated items

python -m cmt_perf.peers.runtimes CHECKPOINT RUNTIME    makes the graphs that a runtime needs, once

PARITY_FILE beside them says how far each stage is from PyTorch fp32, as an export's is: nobody refuses a peer for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

from cmt_engine.cpu import sums_int8_in_16_bits
from cmt_engine.engine import ENGINES, Runner
from cmt_export.checkpoint import Checkpoint, load_checkpoint
from cmt_export.model import CrossModalTransformer, run_model
from cmt_export.parity import references, stage_inputs, stage_parity, wired
from cmt_export.samples import batches
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import COMPILED_STAGES, READY, Stage
from cmt_pipeline.tensors import Array, Arrays
from cmt_release.locks import draft_folder

Runtime = Literal["eager", "compiled", "torchao", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
WITH_GRAPHS: tuple[Runtime, ...] = ("onnxruntime", "openvino")
Run = Callable[[Arrays], "dict[str, Array]"]

CALIBRATION_ITEMS = 32
PARITY_FILE = "parity.json"
COMPARED = (1, 2, 1)  # batches


def run_of(found: Checkpoint, checkpoint: Path, runtime: Runtime) -> Run:
    """Ready tensors [batch, ...] -> the outputs of `fuse`. Of runtimes that need graphs, `prepare` makes them."""
    if runtime == "eager":
        return lambda inputs: run_model(found.model, inputs)
    if runtime in ("compiled", "torchao"):
        return _compiled(found.model, int8=runtime == "torchao")
    return _graphs(graphs_of(checkpoint, runtime), runtime)


def graphs_of(checkpoint: Path, runtime: Runtime) -> Path:
    """Where a runtime's graphs of a checkpoint lie."""
    return checkpoint.with_name(f"{checkpoint.name}-{runtime}")


def needs_graphs(checkpoint: Path, runtime: Runtime) -> bool:
    """Whether a runtime's graphs of a checkpoint are still to be made."""
    return runtime in WITH_GRAPHS and not graphs_of(checkpoint, runtime).is_dir()


def prepare(checkpoint: Path, runtime: Runtime) -> None:
    """Makes the graphs that a runtime needs, unless they are there."""
    folder = graphs_of(checkpoint, runtime)
    if needs_graphs(checkpoint, runtime):
        found = load_checkpoint(checkpoint)
        with draft_folder(folder.parent) as draft:
            for stage in COMPILED_STAGES:
                _quantize(found, stage, draft / stage.name, runtime)
            (draft / PARITY_FILE).write_text(json.dumps(_errors(found, draft, runtime)) + "\n")
            draft.rename(folder)


def parity_of(checkpoint: Path, runtime: Runtime) -> Mapping[str, float]:
    """Relative error of each stage from PyTorch fp32; nothing of a runtime without graphs."""
    path = graphs_of(checkpoint, runtime) / PARITY_FILE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _errors(found: Checkpoint, folder: Path, runtime: Runtime) -> dict[str, float]:
    compared = batches(make_preprocessors(found.config.preprocess, found.tokenizer), COMPARED)
    rows = [
        stage_parity(
            _opened(folder, stage, runtime), ENGINES[runtime], stage, "int8", references(found.model, stage, compared)
        )
        for stage in COMPILED_STAGES
    ]
    return {row.what: row.error for row in rows}


def _compiled(model: CrossModalTransformer, *, int8: bool) -> Run:
    from torch._inductor import config

    from cmt_training.frozen import fast_precision

    config.freezing = True
    model.eval()
    precision = fast_precision()
    if int8:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(model)

    @torch.no_grad()
    def run(inputs: Arrays) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            outputs = compiled(tensors)
        return {name: tensor.float().numpy() for name, tensor in outputs.items()}

    return run


def _graphs(folder: Path, runtime: Runtime) -> Run:
    opened = {stage.name: _opened(folder, stage, runtime) for stage in COMPILED_STAGES}

    def run(inputs: Arrays) -> dict[str, Array]:
        encoded = {
            m: opened[f"encode_{m}"].run({spec.name: inputs[spec.name] for spec in READY[m]}) for m in MODALITIES
        }
        return opened["fuse"].run(wired(encoded))

    return run


def _opened(folder: Path, stage: Stage, runtime: Runtime) -> Runner:
    return (_onnxruntime if runtime == "onnxruntime" else _openvino)(folder / stage.name)


def _onnxruntime(folder: Path) -> Runner:
    from cmt_engine.onnxruntime_engine import OnnxRuntimeRunner

    return OnnxRuntimeRunner(folder / "int8.onnx")


def _openvino(folder: Path) -> Runner:
    import openvino

    compiled = openvino.Core().compile_model(folder / "int8.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    names = [output.any_name for output in compiled.outputs]

    class Compiled:
        def run(self, inputs: Arrays) -> dict[str, Array]:
            return dict(zip(names, (array.copy() for array in compiled(dict(inputs)).to_tuple()), strict=True))

    return Compiled()


def _quantize(found: Checkpoint, stage: Stage, folder: Path, runtime: Runtime) -> None:
    from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint

    graph = onnx_from_checkpoint(found.model, stage, folder)
    if runtime == "onnxruntime":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            graph,
            folder / "int8.onnx",
            weight_type=QuantType.QUInt8 if sums_int8_in_16_bits() else QuantType.QInt8,
            per_channel=True,
            use_external_data_format=True,
        )
    else:
        import nncf
        import openvino

        dataset = nncf.Dataset(_calibration(found, stage))
        quantized = nncf.quantize(
            openvino.convert_model(str(graph)),
            dataset,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=CALIBRATION_ITEMS,
        )
        openvino.save_model(quantized, str(folder / "int8.xml"), compress_to_fp16=False)


def _calibration(found: Checkpoint, stage: Stage) -> list[dict[str, Array]]:
    """The stage's inputs of generated items."""
    made = batches(make_preprocessors(found.config.preprocess, found.tokenizer), [1] * CALIBRATION_ITEMS)
    return list(stage_inputs(found.model, stage, made))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), sys.argv[2])  # type: ignore[arg-type]  # of RUNTIMES, as BenchOptions checks
