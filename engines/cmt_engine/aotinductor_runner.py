"""Runs AOTInductor's packages: on the CPU as they are, on a GPU through CUDA graphs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch._inductor import aoti_load_package

from cmt_pipeline.stages import STAGES
from cmt_pipeline.tensors import Array, Arrays

#: Batches that are recorded as graphs; one between two of them runs as the larger. What a GPU does for more than these
#: takes longer than the launches that a graph saves.
GRAPH_BATCHES = (1, 2, 4, 8)
#: Shapes of a stage that get a graph: those of the warm-up, and as many again. Recording takes as long as a few
#: requests, so none is given up for another; shapes beyond run without.
MAX_GRAPHS = 128
WARM_UP = 2

Key = tuple[tuple[int, ...], ...]  # shapes of the inputs


class CpuRunner:
    """threads: 0 takes one for each core."""

    def __init__(self, path: Path, stage: str, threads: int) -> None:
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        self._model = aoti_load_package(str(path))
        self._inputs = [spec.name for spec in STAGES[stage].inputs]
        self._outputs = [spec.name for spec in STAGES[stage].outputs]

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, Array]:
        outputs = self._model(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs))
        return {name: output.numpy() for name, output in zip(self._outputs, outputs, strict=True)}


@dataclass(frozen=True)
class Recorded:
    """A CUDA graph with the memory that it reads and writes: on the GPU, and pinned on the host."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]
    host_inputs: list[Tensor]
    host_outputs: list[Tensor]


class CudaRunner:
    """One stream and, for each shape it meets, one graph; they share their scratch memory.

    Of a batch that is filled up the further rows hold what an earlier one left there: no row depends on another.
    """

    def __init__(self, path: Path, stage: str) -> None:
        # without the synchronisation between threads, which a graph can't record
        self._model = aoti_load_package(str(path), run_single_threaded=True)
        self._inputs = [spec.name for spec in STAGES[stage].inputs]
        self._outputs = [spec.name for spec in STAGES[stage].outputs]
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Key, Recorded] = {}

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, Array]:
        arrays = [np.ascontiguousarray(inputs[name]) for name in self._inputs]
        rows = len(arrays[0])
        with torch.cuda.stream(self._stream):
            recorded = self._recorded(arrays, _graph_batch(rows))
            outputs = self._run_once(arrays) if recorded is None else self._replay(recorded, arrays, rows)
        return dict(zip(self._outputs, outputs, strict=True))

    def graph_of(self, inputs: Arrays) -> torch.cuda.CUDAGraph | None:
        """What `run` replays for inputs of this shape, None for a batch beyond GRAPH_BATCHES; for measurements."""
        self.run(inputs)
        shapes = [np.shape(inputs[name]) for name in self._inputs]
        recorded = self._graphs.get(tuple((_graph_batch(shape[0]) or 0, *shape[1:]) for shape in shapes))
        return recorded.graph if recorded else None

    def _run_once(self, arrays: list[Array]) -> list[Array]:
        outputs = self._model(*(torch.from_numpy(array).to("cuda") for array in arrays))
        return [output.cpu().numpy() for output in outputs]

    def _replay(self, recorded: Recorded, arrays: list[Array], rows: int) -> list[Array]:
        for array, host, there in zip(arrays, recorded.host_inputs, recorded.inputs, strict=True):
            host[:rows].copy_(torch.from_numpy(array))
            there[:rows].copy_(host[:rows], non_blocking=True)
        recorded.graph.replay()
        for there, host in zip(recorded.outputs, recorded.host_outputs, strict=True):
            host[:rows].copy_(there[:rows], non_blocking=True)
        self._stream.synchronize()
        # copies, since the next run overwrites these
        return [host[:rows].numpy().copy() for host in recorded.host_outputs]

    def _recorded(self, arrays: list[Array], batch: int | None) -> Recorded | None:
        if batch is None:
            return None
        key = tuple((batch, *array.shape[1:]) for array in arrays)
        if key not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            self._graphs[key] = self._record(arrays, batch)
        return self._graphs.get(key)

    def _record(self, arrays: list[Array], batch: int) -> Recorded:
        first = [torch.from_numpy(array)[torch.arange(batch) % len(array)] for array in arrays]
        inputs = [tensor.to("cuda") for tensor in first]
        for _ in range(WARM_UP):  # what is set up lazily mustn't be within the graph
            self._model(*inputs)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = list(self._model(*inputs))
        return Recorded(
            graph,
            inputs,
            outputs,
            [tensor.pin_memory() for tensor in first],
            [torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in outputs],
        )


def _graph_batch(rows: int) -> int | None:
    """The batch that so many rows are run as; None for more than any graph has."""
    return next((size for size in GRAPH_BATCHES if size >= rows), None)
