"""AOTInductor: stages compiled ahead of time by PyTorch's own compiler, for a CPU or, of the same code, for a GPU.

It starts from the PyTorch module rather than from ONNX, and needs neither TensorRT nor its container: `torch` runs what
it made, on NVIDIA's GPUs and, where ROCm's `torch` calls them CUDA devices, on AMD's. A package (`model.pt2`) holds
machine code for the kind of processor that it was compiled on, and belongs to one version of `torch`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from cmt_engine.cpu import cpu_instructions
from cmt_engine.engine import Build, Engine, EngineError, EngineSidecar, Precision, Runner, Tolerance, keep
from cmt_pipeline.stages import Stage

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    from cmt_pipeline.triton_config import Served

MODEL_FILE = "model.pt2"


class AotInductor(Engine):
    """On the CPU."""

    name = "aotinductor"
    tolerances = {  # noqa: RUF012
        "fp32": Tolerance(relative=1e-4, probability=1e-4),
        "bf16": Tolerance(relative=5e-2, probability=4e-2),
    }
    packages = ("torch",)
    runtime = "torch"
    starts_from = "pytorch"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"

    def compile(self, build: Build) -> EngineSidecar:
        """Packages are kept in the cache, which is that of one model, each under what else made it.

        EngineError where the compiler can't be run, and for a stage that came as ONNX.
        """
        sidecar = self.sidecar(build, MODEL_FILE)
        if build.cache is None:
            self._package(build, build.folder)
            return sidecar
        made_by = [build.stage.name, build.precision, sidecar.versions, sidecar.target]
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        kept = build.cache / self.name / key
        if not kept.is_dir():
            draft = kept.with_name(f".{key}-{secrets.token_hex(6)}")
            draft.mkdir(parents=True)
            self._package(build, draft)
            keep(draft, kept)
        shutil.copyfile(kept / MODEL_FILE, build.folder / MODEL_FILE)
        return sidecar

    def _package(self, build: Build, folder: Path) -> None:
        from cmt_engine.aotinductor_build import package

        package(build.traceable, build.precision, self.device, folder / MODEL_FILE)

    def open(self, path: Path, precision: Precision, threads: int) -> Runner:  # noqa: ARG002  # the code has it
        from cmt_engine.aotinductor_runner import CpuRunner

        sidecar = EngineSidecar.read(path.parent)
        self._check_target(sidecar)
        return CpuRunner(path, sidecar.stage, threads)

    def target(self) -> dict[str, str]:
        """The instructions that the code may use."""
        return {"device": "CPU", "instructions": " ".join(cpu_instructions())}

    def _check_target(self, sidecar: EngineSidecar) -> None:
        missing = sorted(set(sidecar.target["instructions"].split()) - set(cpu_instructions()))
        if missing:
            raise EngineError(
                f"{sidecar.stage} was compiled on a CPU with {', '.join(missing)}, which this one lacks: export it on "
                "the kind of machine that serves it"
            )


class AotInductorCuda(AotInductor):
    """On a GPU, its launches recorded as CUDA graphs."""

    name = "aotinductor_cuda"
    tolerances = {  # noqa: RUF012
        **AotInductor.tolerances,
        "fp16": Tolerance(relative=1e-2, probability=5e-3),
    }
    variant = "gpu"
    device = "cuda"

    def closed_here(self) -> str | None:
        import torch

        return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"

    def open(self, path: Path, precision: Precision, threads: int) -> Runner:  # noqa: ARG002
        from cmt_engine.aotinductor_runner import CudaRunner

        sidecar = EngineSidecar.read(path.parent)
        self._check_target(sidecar)
        return CudaRunner(path, sidecar.stage)

    def target(self) -> dict[str, str]:
        """EngineError where torch sees no GPU."""
        import torch

        if not torch.cuda.is_available():
            raise EngineError(
                f"{self.name} compiles on the kind of GPU that serves; torch {torch.__version__} sees none. Run this "
                "on such a machine with a torch for CUDA or ROCm, or export with --engine aotinductor for the CPU"
            )
        major, minor = torch.cuda.get_device_capability()
        return {"gpu": torch.cuda.get_device_name(), "compute_capability": f"{major}.{minor}"}

    def _check_target(self, sidecar: EngineSidecar) -> None:
        here, built = self.target(), sidecar.target
        if here["compute_capability"] != built["compute_capability"]:
            raise EngineError(
                f"{sidecar.stage} was compiled for compute capability {built['compute_capability']} ({built['gpu']}); "
                f"this is {here['gpu']} with {here['compute_capability']}: export it on the kind of GPU that serves it"
            )

    def stage_config(self, stage: Stage, served: Served) -> ModelConfig:
        from cmt_pipeline.triton_config import gpu_stage_config

        return gpu_stage_config(stage, served)


AOTINDUCTOR, AOTINDUCTOR_CUDA = AotInductor(), AotInductorCuda()
