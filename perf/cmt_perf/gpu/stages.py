"""Stages in one process: the same weights and inputs in eager PyTorch, torch.compile and AOTInductor, on the device and
on the CPU, in turns."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmt_engine.aotinductor_build import DTYPES, InPrecision
from cmt_engine.engine import Precision, open_engine
from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.buckets import AUDIO_SAMPLES, frames_of
from cmt_pipeline.stages import COMPILED_STAGES, Stage, sized
from cmt_pipeline.tensors import TensorSpec
from cmt_release.release import Release

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SAMPLES, TOKENS = 64_000, 64
BUCKET = next(bucket for bucket in AUDIO_SAMPLES if bucket >= SAMPLES)
LENGTHS = {"samples": BUCKET, "tokens": TOKENS, "audio_tokens": frames_of(BUCKET), "text_tokens": TOKENS}
SECONDS, LEAST, MOST = 0.4, 5, 100  # of each measurement, and its repetitions
CPU_LEAST = 2
MATRIX, COPIED_BYTES = 8192, 2 << 30

Device = Literal["cpu", "cuda"]
Runs = dict[str, Callable[[], Any]]


def peaks(device: Device) -> dict[str, float]:
    """What the device reaches here: TFLOP/s of a large matrix product by type, GB/s of a copy (read and written)."""
    side, copied = (MATRIX, COPIED_BYTES) if device == "cuda" else (1024, 64 << 20)
    found = {}
    for precision, dtype in DTYPES.items():
        if device == "cpu" and precision == "fp16":
            continue
        a = torch.randn(side, side, device=device).to(dtype)
        found[f"{precision}_tflops"] = 2 * side**3 / _quickest(partial(torch.mm, a, a), device) / 1e12
    source = torch.empty(copied // 4, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = 2 * copied / _quickest(lambda: target.copy_(source), device) / 1e9
    return {name: round(value, 2) for name, value in found.items()}


def stage_inputs(stage: Stage, batch: int, device: Device) -> tuple[Tensor, ...]:
    """4 s of sound, 64 tokens, an image; `fuse`: the features of all three."""
    return tuple(_tensor(spec, batch).to(device) for spec in stage.inputs)


def _tensor(spec: TensorSpec, batch: int) -> Tensor:
    shape = [batch, *(LENGTHS.get(axis.name, axis.sizes[-1]) for axis in spec.axes)]
    if spec.dtype == "FP32":
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return torch.full(shape, SAMPLES if spec.name == "num_samples" else 1, dtype=torch.int64)


def measure_stages(
    checkpoint: Checkpoint,
    release: Release,
    device: Device,
    until: float,
    batches: Sequence[int] = BATCHES,
    compiled: bool = False,
) -> Iterator[dict[str, Any]]:
    """A row for each stage and batch, until time.monotonic() says so. compiled: whether torch.compile takes part,
    which takes a while for each shape."""
    precision = release.manifest.info.precision
    for stage in (sized(stage, checkpoint.model.sizes) for stage in COMPILED_STAGES):
        runner = open_engine(release.stage_folder(stage.name))
        flops = _flops(checkpoint.model.stage(stage), stage)
        module = copy.deepcopy(checkpoint.model.stage(stage)).to(device).eval()
        for batch in batches:
            if time.monotonic() > until:
                return
            runs = _runs(module, runner, stage, batch, device, precision, compiled)
            row: dict[str, Any] = {"stage": stage.name, "batch": batch, "gflop": round(batch * flops / 1e9, 2)}
            yield row | {f"{name}_ms": round(ms, 3) for name, ms in _in_turns(runs, device).items()}
        torch._dynamo.reset()


def _runs(
    module: nn.Module, runner: Any, stage: Stage, batch: int, device: Device, precision: Precision, compiled: bool
) -> Runs:
    """By name, what is to be timed. `served`: from NumPy to NumPy; `graph`: the replay alone."""
    inputs = stage_inputs(stage, batch, device)
    arrays = {spec.name: tensor.cpu().numpy() for spec, tensor in zip(stage.inputs, inputs, strict=True)}
    narrow = _autocast(module, device, precision)
    runs: Runs = {"eager_fp32": lambda: module(*inputs), f"eager_{precision}": lambda: narrow(*inputs)}
    if compiled:
        mode = "reduce-overhead" if device == "cuda" else "default"
        fast = torch.compile(InPrecision(copy.deepcopy(module), DTYPES[precision], device), mode=mode)
        runs[f"compile_{precision}"] = lambda: fast(*inputs)
    runs["served"] = lambda: runner.run(arrays)
    graph = runner.graph_of(arrays) if device == "cuda" else None
    return runs | ({"graph": graph.replay} if graph else {})


def _autocast(module: nn.Module, device: Device, precision: Precision) -> Callable[..., Any]:
    def run(*inputs: Tensor) -> Any:
        with torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "fp32"):
            return module(*inputs)

    return run


@torch.inference_mode()
def _in_turns(runs: Mapping[str, Callable[[], Any]], device: Device) -> dict[str, float]:
    """Median milliseconds of each, one after the other in every round."""
    for run in runs.values():
        for _ in range(3):
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + SECONDS * len(runs)
    rounds = 0
    while rounds < (LEAST if device == "cuda" else CPU_LEAST) or (time.perf_counter() < until and rounds < MOST):
        for name, run in runs.items():
            found[name].append(_timed(run, device))
        rounds += 1
    return {name: statistics.median(times) * 1e3 for name, times in found.items()}


def cpu_rows(checkpoint: Checkpoint) -> dict[str, float]:
    """Eager PyTorch fp32 on all cores of the machine, one item: milliseconds of each stage."""
    rows = {}
    for stage in (sized(stage, checkpoint.model.sizes) for stage in COMPILED_STAGES):
        module, inputs = checkpoint.model.stage(stage).eval(), stage_inputs(stage, 1, "cpu")
        rows[stage.name] = round(_in_turns({"cpu": partial(module, *inputs)}, "cpu")["cpu"], 2)
    return rows


def _flops(module: nn.Module, stage: Stage) -> float:
    """Of one item, as PyTorch counts them: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*stage_inputs(stage, 1, "cpu"))
    return float(counter.get_total_flops())


def _timed(run: Callable[[], Any], device: Device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _quickest(run: Callable[[], Any], device: Device) -> float:
    return min(_timed(run, device) for _ in range(10))


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
