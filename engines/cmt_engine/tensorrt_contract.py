"""Checks a TensorRT network or engine against the tensor contract, and reads built engines back.

What can be known of a built engine depends on the machine. With a GPU, TensorRT opens the plan and tells
names, types, dimensions and profile. Without one it opens nothing (deserialize_cuda_engine gives None,
get_engine_validity calls every plan invalid, both for want of a CUDA driver), so the plan file itself is
read: version, size, and the names, types and dimensions of inputs and outputs. That an engine computes the
right thing is known only from running it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmt_engine.engine import EngineError, EngineSidecar
from cmt_engine.gpu import Gpu, find_gpus
from cmt_engine.plan_file import EngineTensor, Plan, read_plan
from cmt_engine.tensorrt_library import same_version
from cmt_engine.tensorrt_module import TensorRt, load_tensorrt, log_of
from cmt_pipeline.stages import STAGES, Stage
from cmt_pipeline.tensors import TensorSpec

#: tensorrt.DataType -> the contract's names
DTYPE_NAMES = {"FLOAT": "FP32", "HALF": "FP16"}

#: engine: opened by TensorRT; plan: read from the file; header: only the file's version and size.
ReadFrom = Literal["engine", "plan", "header"]


@dataclass(frozen=True)
class EngineReport:
    """A built engine, as read back. version: of TensorRT, from the plan's header."""

    stage: str
    read_from: ReadFrom
    version: str
    size_bytes: int
    tensors: tuple[EngineTensor, ...]


def check_contract(stage: Stage, inputs: Iterable[EngineTensor], outputs: Iterable[EngineTensor], what: str) -> None:
    """EngineError that names every input and output which isn't as the stage's contract says."""
    wrong = [
        *(f"input {problem}" for problem in _mismatches(stage.inputs, inputs)),
        *(f"output {problem}" for problem in _mismatches(stage.outputs, outputs)),
    ]
    if wrong:
        raise EngineError(
            f"{what} doesn't keep the contract of {stage.name}: {'; '.join(wrong)}. "
            "Export it again with the contract's names, types, fixed sizes and dynamic axes."
        )


def inspect_engine(folder: Path, gpus: Callable[[], tuple[Gpu, ...]] = find_gpus) -> EngineReport:
    """Reads back the engine of a stage version as far as this machine can; checks it against the contract.

    EngineError where the plan is missing, cut off, made by another version than engine.json says, or doesn't
    keep the contract. gpus: a stand-in for tests.
    """
    sidecar, plan = read_back(folder)
    path = folder / sidecar.model
    tensors = plan.tensors
    read_from: ReadFrom = "plan" if tensors else "header"
    tensorrt = _opener(sidecar, gpus)
    if tensorrt:
        tensors, read_from = tensors_of(deserialised(tensorrt, path)), "engine"
        _check(sidecar, tensors, path)
    return EngineReport(sidecar.stage, read_from, plan.version, plan.size_bytes, tensors)


def read_back(folder: Path) -> tuple[EngineSidecar, Plan]:
    """engine.json of a stage version and what its plan file says, in so far as that is known without opening it.

    EngineError where the plan is missing, cut off, of another flavour or version than engine.json says, or known not to
    keep the contract.
    """
    sidecar = EngineSidecar.read(folder)
    path = folder / sidecar.model
    try:
        plan = read_plan(path)
    except (OSError, ValueError) as error:
        raise EngineError(f"{error}. Build the engine again.") from error
    built = sidecar.versions.get(plan.flavour, "")
    if not same_version(plan.version, built):
        said = " ".join(f"{name} {version}" for name, version in sidecar.versions.items())
        raise EngineError(f"{path} was made by {plan.flavour} {plan.version}; engine.json says {said}. Build it again.")
    if plan.tensors:
        _check(sidecar, plan.tensors, path)
    return sidecar, plan


def _opener(sidecar: EngineSidecar, gpus: Callable[[], tuple[Gpu, ...]]) -> TensorRt | None:
    """The TensorRT that can open the engine, if this machine has it and a GPU that the engine is for."""
    targets = ", ".join(sidecar.target.get(key, "") for key in ("compute_capability", "compute_capabilities"))
    gpu = next(iter(gpus()), None)
    if gpu is None or gpu.compute_capability not in targets.split(", "):
        return None
    try:
        return load_tensorrt("tensorrt_rtx" if "tensorrt_rtx" in sidecar.versions else "tensorrt", gpus=gpus)
    except EngineError:
        return None


def tensor_of(tensor: Any) -> EngineTensor:
    """An ITensor of a parsed network."""
    return EngineTensor(tensor.name, _dtype_name(tensor.dtype), tuple(tensor.shape))


def deserialised(tensorrt: TensorRt, path: Path) -> Any:
    """The ICudaEngine of a plan. EngineError, with what TensorRT said, where it doesn't open."""
    log = log_of(tensorrt.module)
    log.errors.clear()
    engine = tensorrt.module.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{tensorrt.name} {tensorrt.version} can't open {path}: {'; '.join(log.errors)}")
    return engine


def tensors_of(engine: Any) -> tuple[EngineTensor, ...]:
    """Inputs and outputs of an ICudaEngine."""
    names = sorted(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    return tuple(
        EngineTensor(name, _dtype_name(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))
        for name in names
    )


def _check(sidecar: EngineSidecar, tensors: Iterable[EngineTensor], path: Path) -> None:
    stage = STAGES[sidecar.stage]
    names = {spec.name for spec in stage.inputs}
    inputs = [tensor for tensor in tensors if tensor.name in names]
    check_contract(stage, inputs, [t for t in tensors if t.name not in names], str(path))


def _dtype_name(dtype: Any) -> str:
    return DTYPE_NAMES.get(dtype.name, str(dtype.name))


def _mismatches(specs: Iterable[TensorSpec], tensors: Iterable[EngineTensor]) -> Iterable[str]:
    found = {tensor.name: tensor for tensor in tensors}
    for spec in specs:
        tensor = found.pop(spec.name, None)
        if tensor is None:
            yield f"{spec.describe()} is missing"
        elif not _fits(tensor, spec):
            yield f"{spec.describe()} expected, got {tensor.describe()}"
    yield from (f"{tensor.describe()} is not in the contract" for tensor in found.values())


def _fits(tensor: EngineTensor, spec: TensorSpec) -> bool:
    return (
        tensor.dtype == spec.dtype
        and len(tensor.dims) == len(spec.axes) + 1
        and tensor.dims[0] == -1
        and all(not axis.sizes or dim == axis.dim for dim, axis in zip(tensor.dims[1:], spec.axes, strict=True))
    )
