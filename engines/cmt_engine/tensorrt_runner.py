"""Runs a TensorRT plan on the GPU, so that its parity is measured where it is built. Triton's own backend serves it.

Memory, streams and CUDA graphs are torch.cuda's: an export has torch in it anyway, as the truth that a plan is held
against, and PyPI's torch for Linux is a CUDA build. So a plan needs no package more.

Each shape has an execution context of its own and the graph that was captured with it: a graph keeps what its context
had set, so there is one context for each (a maintainer's advice in NVIDIA/TensorRT #3798). Contexts get the scratch
memory that their shape needs, rather than what the profile's largest would.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmt_engine.engine import EngineError
from cmt_engine.tensorrt_contract import check_contract, deserialised, read_back, tensors_of
from cmt_engine.tensorrt_library import same_version
from cmt_engine.tensorrt_module import Flavour, load_tensorrt
from cmt_pipeline.stages import STAGES, Stage
from cmt_pipeline.tensors import Array, Arrays, TensorSpec

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)

#: Shapes that are kept ready, each with its context, tensors and graph; the one that waited longest goes.
MOST_SHAPES = 32


def no_cuda() -> str | None:
    """Why this process can't run a plan whatever its version, or None."""
    try:
        import torch
    except ImportError:
        return 'torch isn\'t installed: pip install "cmt-triton[export]"'
    if torch.cuda.is_available():
        return None
    built = f"torch {torch.__version__} is built without CUDA: install PyPI's" if not torch.version.cuda else ""
    return built or "CUDA shows no GPU"


def open_plan(path: Path) -> TensorRtRunner:
    """The plan of a stage version's folder. EngineError where it isn't what engine.json says, or can't run here."""
    sidecar, plan = read_back(path.parent)
    flavour: Flavour = "tensorrt_rtx" if plan.rtx else "tensorrt"
    if reason := no_cuda():
        served = "" if plan.rtx else "; Triton's own backend serves it (--model-config-name tensorrt)"
        raise EngineError(f"{path} is a plan of {flavour} {plan.version}, which runs on a GPU: {reason}{served}")
    tensorrt = load_tensorrt(flavour)
    if not same_version(plan.version, tensorrt.version):
        raise EngineError(
            f"{path} was built by {flavour} {plan.version}; {tensorrt.version} is here, and a plan opens in its own "
            "version alone: build it again here"
        )
    engine = deserialised(tensorrt, path)
    stage = STAGES[sidecar.stage]
    tensors = tensors_of(engine)
    inputs = [tensor for tensor in tensors if engine.get_tensor_mode(tensor.name).name == "INPUT"]
    check_contract(stage, inputs, [tensor for tensor in tensors if tensor not in inputs], str(path))
    if on_host := [tensor.name for tensor in tensors if engine.get_tensor_location(tensor.name).name == "HOST"]:
        raise EngineError(f"{path} reads {', '.join(on_host)} in the host's memory, to compute shapes: export it again")
    return TensorRtRunner(tensorrt.module, engine, stage, sidecar.profile)


class TensorRtRunner:
    """A plan on the first GPU. For one thread at a time."""

    def __init__(self, module: Any, engine: Any, stage: Stage, profile: Mapping[str, Any]) -> None:
        """module: TensorRT's; engine: its ICudaEngine; profile: as engine.json has it."""
        import torch

        self._module, self._engine, self._stage, self._profile = module, engine, stage, profile
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._shapes: dict[tuple[tuple[int, ...], ...], _Shape] = {}

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Any shape of the profile. EngineError for another one, and for what TensorRT refuses."""
        import torch

        arrays = checked(inputs, self._stage, self._profile)
        with torch.cuda.stream(self._stream):
            shape = self._ready(arrays)
            for name, array in arrays.items():
                shape.tensors[name].copy_(torch.from_numpy(array))
            shape.run()
            return {spec.name: shape.tensors[spec.name].cpu().numpy() for spec in self._stage.outputs}

    def _ready(self, arrays: Arrays) -> _Shape:
        key = tuple(array.shape for array in arrays.values())
        shape = self._shapes.pop(key, None) or self._made(arrays)
        if len(self._shapes) >= MOST_SHAPES:
            del self._shapes[next(iter(self._shapes))]
        self._shapes[key] = shape  # the one used last is the last
        return shape

    def _made(self, arrays: Arrays) -> _Shape:
        context = self._engine.create_execution_context(self._module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError("TensorRT can't make another execution context; is the GPU's memory full?")
        return _Shape(context, bound(context, arrays, self._stage.outputs), self._stream)


class _Shape:
    """One shape of the inputs: a context in which it is set, its tensors on the GPU, and the graph over them."""

    def __init__(self, context: Any, tensors: dict[str, torch.Tensor], stream: torch.cuda.Stream) -> None:
        import torch

        self.tensors = tensors
        self._context, self._stream = context, stream
        size = context.update_device_memory_size_for_shapes()
        self._scratch = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
        context.set_device_memory(self._scratch.data_ptr(), size)
        self._graph = self._captured()

    def run(self) -> None:
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """None where TensorRT does what a graph can't hold: then it is enqueued each time, which is slower."""
        import torch

        self._enqueue()  # the first run of a shape does work of its own, which a graph must not repeat
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue()
        except RuntimeError as error:  # torch's, or an EngineError
            LOG.warning(f"runs without a CUDA graph: {error}")
            return None
        return graph

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise EngineError("TensorRT couldn't run the plan; its log says why")


def bound(context: Any, arrays: Arrays, outputs: Iterable[TensorSpec]) -> dict[str, torch.Tensor]:
    """These inputs on the GPU, and tensors for what comes of them, all known to the context by their names."""
    import torch

    for name, array in arrays.items():
        if not context.set_input_shape(name, tuple(array.shape)):
            raise EngineError(f"TensorRT refuses {name} of shape {list(array.shape)}: it isn't in the plan's profile")
    if missing := context.infer_shapes():
        raise EngineError(f"the shapes of {', '.join(missing)} don't follow from those of the inputs: export it again")
    tensors = {name: torch.from_numpy(array).to("cuda") for name, array in arrays.items()}
    for spec in outputs:
        shape, dtype = tuple(context.get_tensor_shape(spec.name)), getattr(torch, spec.numpy_dtype.name)
        tensors[spec.name] = torch.empty(shape, dtype=dtype, device="cuda")
    for name, tensor in tensors.items():
        if not context.set_tensor_address(name, tensor.data_ptr()):
            raise EngineError(f"TensorRT refuses the memory of {name}")
    return tensors


def checked(inputs: Arrays, stage: Stage, profile: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs that a plan takes, contiguous. EngineError for one that is missing, of another type or outside."""
    arrays = {}
    for spec in stage.inputs:
        array = inputs.get(spec.name)
        if array is None:
            raise EngineError(f"got {', '.join(inputs) or 'no input'}; expected {spec.describe()} too")
        least, most = profile[spec.name]["min"], profile[spec.name]["max"]
        inside = array.ndim == len(least) and all(
            low <= size <= high for low, size, high in zip(least, array.shape, most, strict=True)
        )
        if array.dtype != spec.numpy_dtype or not inside:
            raise EngineError(
                f"got {spec.name} of {array.dtype} {list(array.shape)}; expected {spec.dtype} from {least} to {most}"
            )
        arrays[spec.name] = np.ascontiguousarray(array)
    return arrays
