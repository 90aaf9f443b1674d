"""TensorRT: ONNX -> plan, with one optimisation profile drawn from the contract's buckets.

Works with `tensorrt` 10 and 11 and with `tensorrt_rtx`. Networks are strongly typed in all of them, so
precision is written into the graph first (typed_onnx). Triton runs the plans of `tensorrt`, on the kind of
GPU and the version they were built with. A plan of `tensorrt_rtx` is for applications; here it proves on any
machine that the graphs compile.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from google.protobuf.message import DecodeError
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from cmt_engine.engine import EngineError, EngineSidecar, Precision, sha256_of
from cmt_engine.plan_file import PLAN_FILE, EngineTensor
from cmt_engine.tensorrt_contract import check_contract, tensor_of
from cmt_engine.tensorrt_fit import Profile, misfits
from cmt_engine.tensorrt_module import (
    BuildProgress,
    Flavour,
    TensorRt,
    load_tensorrt,
    log_of,
    monitor_of,
    network_flags,
)
from cmt_engine.typed_onnx import TypedPrecision, onnx_files, onnx_in_precision
from cmt_pipeline.limits import MAX_GPU_BATCH_SIZE
from cmt_pipeline.progress import Progress
from cmt_pipeline.stages import Stage, sized
from cmt_pipeline.tensors import ABSENT_TOKENS, DEFAULT_SIZES, Axis

TYPICAL_BATCH = 4

#: What an engine of TensorRT for RTX runs on unless set otherwise ("and later", says its documentation
#: of CPU-only engines). 9.0 is no target of version 1.7.
PORTABLE = ("8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True)
class TensorRtOptions:
    """How to build.

    timing_cache: a file to read tactic timings from and to write them back to (TensorRT for RTX times
    nothing); workspace_bytes: scratch memory that a kernel may ask for, None for all of the GPU's;
    optimisation_level: 0 to 5, None for TensorRT's own default; compute_capabilities: targets of TensorRT for
    RTX such as `8.9`, none for PORTABLE; tf32: lets fp32 products round their inputs to 10 bits;
    fp32_tensors: those that the precision doesn't hold, and their largest magnitudes (activation_ranges).
    """

    flavour: Flavour = "auto"
    precision: Precision = "fp16"
    max_batch: int = MAX_GPU_BATCH_SIZE
    timing_cache: Path | None = None
    workspace_bytes: int | None = None
    optimisation_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    fp32_tensors: Mapping[str, float] = field(default_factory=dict)


DEFAULT_OPTIONS = TensorRtOptions()


def profile_of(stage: Stage, max_batch: int = MAX_GPU_BATCH_SIZE) -> Profile:
    """The shapes that an engine of the stage takes, one item of the smallest to max_batch of the largest.

    It is tuned for the middle bucket (4 s, 64 tokens, every patch) at a batch of TYPICAL_BATCH. `fuse` also
    takes the length of an absent modality.
    """

    def shape(batch: int, pick: Any, axes: tuple[Axis, ...]) -> list[int]:
        return [batch, *(pick(axis) for axis in axes)]

    return {
        spec.name: {
            "min": shape(1, lambda axis: axis.sizes[0], spec.axes),
            "opt": shape(min(TYPICAL_BATCH, max_batch), _typical, spec.axes),
            "max": shape(max_batch, lambda axis: axis.sizes[-1], spec.axes),
        }
        for spec in sized(stage, DEFAULT_SIZES).inputs
    }


def engine_from_onnx(
    onnx_path: Path,
    stage: Stage,
    folder: Path,
    options: TensorRtOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> EngineSidecar:
    """Builds the fp32 graph at `onnx_path` into `folder`: model.plan and engine.json.

    EngineError where TensorRT isn't installed or finds no GPU, where an option doesn't fit, where the graph
    doesn't keep the stage's contract, and where TensorRT can't parse or build it: then with all that it said.
    What `progress` raises stops the build and is raised again.
    """
    _check_options(options)
    tensorrt = load_tensorrt(options.flavour)
    profile = profile_of(stage, options.max_batch)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".typed.", dir=folder) as scratch:
        typed = onnx_path
        if options.precision != "fp32":
            typed = _typed(onnx_path, options, Path(scratch) / "typed.onnx")
        _check_fit(typed, profile, onnx_path)
        plan = build_plan(tensorrt, typed, stage, options, profile, progress)
    _write(folder / PLAN_FILE, plan)
    sidecar = EngineSidecar(
        stage=stage.name,
        engine="tensorrt",
        precision=options.precision,
        model=PLAN_FILE,
        onnx_sha256=sha256_of(*onnx_files(onnx_path)),
        versions={tensorrt.name: tensorrt.version},
        target=target_of(tensorrt, options),
        profile=profile,
        fp32_tensors=options.fp32_tensors,
    )
    sidecar.write(folder)
    return sidecar


def target_of(tensorrt: TensorRt, options: TensorRtOptions) -> dict[str, str]:
    """What an engine is for: the GPU it is built on, or the targets of TensorRT for RTX."""
    if tensorrt.gpu:
        return {"gpu": tensorrt.gpu.name, "compute_capability": tensorrt.gpu.compute_capability}
    return {"compute_capabilities": ", ".join(options.compute_capabilities or PORTABLE)}


def engine_key(
    onnx_sha256: str, precision: Precision, version: str, gpu: str, settings: Mapping[str, Any] | None = None
) -> str:
    """Names a cached engine by all that made it (another GPU, version or graph: another key), 16 hex digits.

    version: with the flavour, `tensorrt 10.13.3.9`; settings: whatever else differs, JSON-able.
    """
    parts = [onnx_sha256, precision, version, gpu, settings or {}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def key_of(onnx_path: Path, stage: Stage, options: TensorRtOptions = DEFAULT_OPTIONS) -> str:
    """The engine_key of what `engine_from_onnx` would build here. EngineError without TensorRT."""
    tensorrt = load_tensorrt(options.flavour)
    settings = asdict(options) | {"profile": profile_of(stage, options.max_batch)}
    for unrelated in ("flavour", "timing_cache"):
        del settings[unrelated]
    target = json.dumps(target_of(tensorrt, options), sort_keys=True)
    digest = sha256_of(*onnx_files(onnx_path))
    return engine_key(digest, options.precision, f"{tensorrt.name} {tensorrt.version}", target, settings)


def build_plan(
    tensorrt: TensorRt,
    onnx_path: Path,
    stage: Stage,
    options: TensorRtOptions,
    profile: Profile,
    progress: Progress | None = None,
) -> memoryview:
    """The serialized engine of a graph that is typed already."""
    trt, log = tensorrt.module, log_of(tensorrt.module)
    log.errors.clear()
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    network.name = stage.name
    parser = trt.OnnxParser(network, log)  # holds the weights until the engine is built
    _parse(parser, onnx_path, log.errors)
    check_contract(stage, *_tensors_of(network), f"{onnx_path} as TensorRT parsed it")
    config = _config(tensorrt, builder, options, profile)
    reported = BuildProgress(progress)
    monitor = monitor_of(trt, reported)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None and reported.failure is None:
        raise EngineError(f"{tensorrt.name} couldn't build {stage.name}: {_joined_errors(log.errors)}")
    reported.end()
    if options.timing_cache and not tensorrt.rtx:
        _write(options.timing_cache, memoryview(config.get_timing_cache().serialize()))
    return memoryview(plan)


def _typed(onnx_path: Path, options: TensorRtOptions, target: Path) -> Path:
    precision = options.precision
    try:
        return onnx_in_precision(onnx_path, cast("TypedPrecision", precision), target, options.fp32_tensors)
    except (ValueError, OSError, DecodeError, ValidationError, InferenceError) as error:
        raise EngineError(f"{onnx_path} can't be typed as {precision}: {error}. Does it build in fp32?") from error


def _check_fit(typed: Path, profile: Profile, onnx_path: Path) -> None:
    """EngineError that names every misfit of the graph as it is typed."""
    try:
        found = misfits(typed, profile)
    except (ValueError, OSError, DecodeError) as error:
        raise EngineError(f"{onnx_path} can't be read as ONNX: {error}") from error
    if found:
        raise EngineError(f"{onnx_path} doesn't fit TensorRT, {len(found)} of its nodes or axes: {'; '.join(found)}")


def _parse(parser: Any, onnx_path: Path, errors: list[str]) -> None:
    if parser.parse_from_file(str(onnx_path)):
        return
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    faults = [f"{e.node_operator() or 'graph'} {e.node_name()}: {e.desc()}" for e in found]
    raise EngineError(
        f"TensorRT can't parse {onnx_path}, {len(faults)} of its nodes: {_joined_errors(faults or errors)}. "
        "Export the model without these operators."
    )


def _config(tensorrt: TensorRt, builder: Any, options: TensorRtOptions, profile: Profile) -> Any:
    trt, config = tensorrt.module, builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name, shape in profile.items():
        shapes.set_shape(name, shape["min"], shape["opt"], shape["max"])
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"TensorRT refuses the profile {profile}: {_joined_errors(log_of(trt).errors)}")
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimisation_level is not None:
        config.builder_optimization_level = options.optimisation_level
    if options.compute_capabilities:
        set_targets(tensorrt, config, options.compute_capabilities)
    if options.timing_cache and not tensorrt.rtx:
        use_timing_cache(config, options.timing_cache)
    return config


def set_targets(tensorrt: TensorRt, config: Any, targets: tuple[str, ...]) -> None:
    """Compiles for these compute capabilities. EngineError where the flavour doesn't take them."""
    if not tensorrt.rtx:
        raise EngineError(
            f"got compute capabilities {', '.join(targets)}; TensorRT builds for the GPU it runs on. "
            "Leave them away, or build with the flavour tensorrt_rtx."
        )
    known = tensorrt.module.ComputeCapability.__members__
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        value = known.get(f"SM{target.replace('.', '')}")
        if value is None:
            takes = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
            raise EngineError(f"got compute capability {target}; TensorRT for RTX takes {takes}")
        config.set_compute_capability(value, index)


def use_timing_cache(config: Any, path: Path) -> None:
    """Starts empty where the file is missing, damaged, or of another GPU or version."""
    kept = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _tensors_of(network: Any) -> tuple[list[EngineTensor], list[EngineTensor]]:
    """Inputs and outputs of a parsed network."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return [tensor_of(tensor) for tensor in inputs], [tensor_of(tensor) for tensor in outputs]


def _check_options(options: TensorRtOptions) -> None:
    takes = get_args(TypedPrecision)
    level, batch = options.optimisation_level, options.max_batch
    if options.precision not in takes:
        raise EngineError(f"got precision {options.precision}; TensorRT takes {', '.join(takes)}")
    if level is not None and not 0 <= level <= 5:
        raise EngineError(f"got optimisation level {level}; TensorRT takes 0 to 5")
    if batch < 1:
        raise EngineError(f"got max_batch {batch}; an engine takes at least one item")


def _typical(axis: Axis) -> int:
    real = [size for size in axis.sizes if size != ABSENT_TOKENS] or list(axis.sizes)
    return real[len(real) // 2]


def _joined_errors(errors: list[str]) -> str:
    return "; ".join(dict.fromkeys(errors)) or "it gave no reason"


def _write(path: Path, data: memoryview) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
    os.replace(part, path)
