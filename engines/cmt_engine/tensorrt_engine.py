"""TensorRT on the GPU: plans that Triton's own backend runs, on the kind of GPU that they were built for."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cmt_engine.engine import Build, Engine, EngineSidecar, Precision, Runner, Tolerance, keep
from cmt_engine.gpu import find_gpus
from cmt_engine.tensorrt_library import library_version, plan_faults, rtx_fault
from cmt_engine.tensorrt_module import load_tensorrt
from cmt_pipeline.stages import Stage

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    from cmt_pipeline.triton_config import Served


MEASURED_SAMPLES = 16  # of a calibration's: among generated ones every length twice or nearly


class TensorRtEngine(Engine):
    name = "tensorrt"
    tolerances = {  # noqa: RUF012
        "fp32": Tolerance(relative=1e-4, probability=1e-4),
        "fp16": Tolerance(relative=1e-2, probability=5e-3),
        "bf16": Tolerance(relative=5e-2, probability=4e-2),
    }
    variant = "tensorrt"
    backend = "tensorrt"

    def compile(self, build: Build) -> EngineSidecar:
        """Plans are kept in the cache, each under the key of its graph, GPU and TensorRT version."""
        from cmt_engine.tensorrt_build import TensorRtOptions, engine_from_onnx, key_of

        options = TensorRtOptions(precision=build.precision, fp32_tensors=_not_held(build))
        if build.cache is None:
            return engine_from_onnx(build.onnx, build.stage, build.folder, options)
        options = replace(options, timing_cache=build.cache / "timings")
        kept = build.cache / key_of(build.onnx, build.stage, options)
        if not kept.is_dir():
            draft = kept.with_name(f".{kept.name}-{secrets.token_hex(6)}")
            engine_from_onnx(build.onnx, build.stage, draft, options)
            keep(draft, kept)
        shutil.copytree(kept, build.folder, dirs_exist_ok=True)
        return EngineSidecar.read(build.folder)

    def open(self, path: Path, precision: Precision, threads: int) -> Runner:  # noqa: ARG002  # the GPU has its own
        from cmt_engine.tensorrt_runner import open_plan

        return open_plan(path)

    def closed_here(self) -> str | None:
        from cmt_engine.tensorrt_build import DEFAULT_OPTIONS, target_of
        from cmt_engine.tensorrt_runner import no_cuda

        if reason := no_cuda():
            return reason
        tensorrt, gpu = load_tensorrt("auto"), find_gpus()[0]
        targets = target_of(tensorrt, DEFAULT_OPTIONS).get("compute_capabilities")
        if targets and gpu.compute_capability not in targets.split(", "):
            return (
                f"TensorRT for RTX builds for compute capabilities {targets}; {gpu.name} has {gpu.compute_capability}"
            )
        return None

    def versions(self) -> dict[str, str]:
        """Of several distributions, any of which may bring it."""
        tensorrt = load_tensorrt("auto")
        return {tensorrt.name: tensorrt.version}

    def target(self) -> dict[str, str]:
        """A plan runs on the kind of GPU that it was built for."""
        from cmt_engine.tensorrt_build import DEFAULT_OPTIONS, target_of

        return target_of(load_tensorrt("auto"), DEFAULT_OPTIONS)

    def never_served(self, versions: Mapping[str, str]) -> list[str]:
        fault = rtx_fault(versions)
        return [fault] if fault else []

    def misfits(self, versions: Mapping[str, str], target: Mapping[str, str]) -> list[str]:
        return plan_faults(versions, target, library_version(), find_gpus())

    def stage_config(self, stage: Stage, served: Served) -> ModelConfig:
        from cmt_pipeline.triton_config import tensorrt_config

        return tensorrt_config(stage, served)


def _not_held(build: Build) -> dict[str, float]:
    """Tensors that the typed graph would hold in fp16, and that leave its range on samples; bf16 has that of fp32."""
    if build.precision != "fp16":
        return {}
    from cmt_engine.activation_ranges import activation_ranges, beyond_fp16
    from cmt_engine.typed_onnx import narrow_tensors

    samples = build.calibration()[:MEASURED_SAMPLES]
    beyond = beyond_fp16(activation_ranges(build.onnx, samples)) if samples else {}
    held = narrow_tensors(build.onnx, "fp16") if beyond else frozenset()
    return {name: largest for name, largest in beyond.items() if name in held}


TENSORRT = TensorRtEngine()
