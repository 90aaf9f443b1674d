"""What Triton's python backend runs: thin adapters from its requests to preprocessing and engines.

A request is answered or refused on its own: whatever one carries, the others of its batch get the answer that they
would have got alone.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cmt_engine.engine import open_engine
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import Preprocessor, collate, open_config, open_preprocessors
from cmt_pipeline.stages import ALL_READY, STAGES, Stage
from cmt_pipeline.tensors import Array
from cmt_server.checks import check_ready_tensors

#: What became of one item: its ready tensors, or why it is refused.
Outcome = dict[str, Array] | InvalidInput


class PreprocessModel:
    """`preprocess`: bytes [batch, 1] of some modalities -> their ready tensors.

    Items are prepared on a few threads: decoders and resamplers work outside Python's lock. A refusal travels as a
    value: as a raised error its traceback would hold on to the request, and with it to shared memory, until Python's
    cycle collector next runs.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        _, folder, parameters = _opened(args)
        self._preprocessors = open_preprocessors(folder, Limits.from_text(parameters))
        self._pool = ThreadPoolExecutor(len(MODALITIES), "preprocess")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        started = [self._start(request) for request in requests]
        return [_answer(lambda futures=futures: _collected(futures)) for futures in started]  # type: ignore[misc]

    def finalize(self) -> None:
        self._pool.shutdown()

    def _start(self, request: Any) -> dict[Modality, list[Future[Outcome]]]:
        started: dict[Modality, list[Future[Outcome]]] = {}
        for modality in MODALITIES:
            files = _tensor(request, modality)
            if files is not None:
                prepare = self._preprocessors[modality]
                started[modality] = [self._pool.submit(_prepared, prepare, data) for data in files[:, 0]]
        return started


class CheckModel:
    """`check`: ready tensors of some modalities -> the same, once they are known to be sound."""

    def initialize(self, args: Mapping[str, str]) -> None:
        _, folder, _ = _opened(args)
        self._vocabulary = open_config(folder).vocabulary

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [_answer(lambda request=request: self._run(request)) for request in requests]  # type: ignore[misc]

    def _run(self, request: Any) -> dict[str, Array]:
        inputs = {spec.name: array for spec in ALL_READY if (array := _tensor(request, spec.name)) is not None}
        check_ready_tensors(inputs, self._vocabulary)
        return inputs


class EngineModel:
    """`encode_*` and `fuse`: contract inputs -> contract outputs, whole batches through one engine run."""

    def initialize(self, args: Mapping[str, str]) -> None:
        self._stage, folder, parameters = _opened(args)
        os.nice(int(parameters.get("niceness", "0")))  # its threads start with it
        self._engine = open_engine(folder, threads=int(parameters.get("threads", "0")))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[int, dict[str, Array]]]] = defaultdict(list)
        for index, request in enumerate(requests):
            inputs = {spec.name: _tensor(request, spec.name) for spec in self._stage.inputs}
            groups[tuple(array.shape[1:] for array in inputs.values())].append((index, inputs))
        for group in groups.values():
            self._run(group, requests, responses)
        return responses

    def _run(self, group: list[tuple[int, dict[str, Array]]], requests: Sequence[Any], responses: list[Any]) -> None:
        """Runs requests of equal shape as one batch and deals the rows out again."""
        names = group[0][1].keys()
        joined = {name: _joined([inputs[name] for _, inputs in group]) for name in names}
        try:
            outputs = self._engine.run(joined)
        except Exception as error:
            for index, _ in group:
                responses[index] = _refusal(error)
            return
        start = 0
        for index, inputs in group:
            stop = start + len(next(iter(inputs.values())))
            wanted = requests[index].requested_output_names()
            responses[index] = _response({name: outputs[name][start:stop] for name in wanted})
            start = stop


def _opened(args: Mapping[str, str]) -> tuple[Stage, Path, dict[str, str]]:
    config = json.loads(args["model_config"])
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    return STAGES[config["name"]], Path(args["model_repository"]) / args["model_version"], parameters


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _tensor(request: Any, name: str) -> Any:
    """An input as an array, or None if the request doesn't have it."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _prepared(prepare: Preprocessor, data: bytes) -> Outcome:
    try:
        return prepare(data)
    except InvalidInput as error:
        return InvalidInput(error.field, error.code, error.message)


def _collected(started: Mapping[Modality, Sequence[Future[Outcome]]]) -> Outcome:
    """The ready tensors of a request's items, or the first refusal, which of several items names its own."""
    outputs: dict[str, Array] = {}
    for modality, futures in started.items():
        items = []
        for index, future in enumerate(futures):
            outcome = future.result()
            if isinstance(outcome, InvalidInput):
                which = f"item {index} of {len(futures)}: " if len(futures) > 1 else ""
                return InvalidInput(outcome.field, outcome.code, which + outcome.message)
            items.append(outcome)
        outputs |= collate(modality, items)
    return outputs


def _answer(run: Callable[[], Outcome]) -> Any:
    try:
        outcome = run()
        return _refusal(outcome) if isinstance(outcome, InvalidInput) else _response(outcome)
    except Exception as error:
        return _refusal(error)


def _response(outputs: Mapping[str, Array]) -> Any:
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()])


def _refusal(error: Exception) -> Any:
    """The caller's fault as INVALID_ARG with field and code; anything else as INTERNAL, with its kind."""
    if isinstance(error, InvalidInput):
        return pb.InferenceResponse(error=pb.TritonError(error.to_wire(), pb.TritonError.INVALID_ARG))
    pb.Logger.log_error(f"{type(error).__name__}: {error}")
    return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL))
