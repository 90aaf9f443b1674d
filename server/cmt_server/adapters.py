"""What Triton's python backend runs: thin adapters from its requests to preprocessing and engines.

A request is answered or refused on its own: whatever one carries, the others of its batch get the answer that they
would have got alone. The stages that a request meets first say which release answers, and count.
"""

from __future__ import annotations

import json
import os
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cmt_engine.engine import open_engine
from cmt_pipeline.errors import DRAINING, InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.pipelines import Entrance, pipeline_name
from cmt_pipeline.preprocess import Preprocessor, collate, open_config, open_preprocessors
from cmt_pipeline.release_info import STAMP_FILE, ReleaseStamp
from cmt_pipeline.stages import ALL_READY, RAW, READY, RELEASE, STAGES, Stage
from cmt_pipeline.tensors import Array
from cmt_server.checks import check_ready_tensors
from cmt_server.counts import LoadedRelease, RequestCounts, warm_ups
from cmt_server.draining import Busy

#: What became of one item: its ready tensors, or why it is refused.
Outcome = dict[str, Array] | InvalidInput

#: The tensors of a modality at either entrance.
NAMES: Mapping[Modality, set[str]] = {m: {RAW[m].name, *(spec.name for spec in READY[m])} for m in MODALITIES}


class Entry:
    """What both stages do that a request meets first: let it in, answer with the release's stamp or refuse, count."""

    def __init__(self, args: Mapping[str, str], entrance: Entrance) -> None:
        _, folder, _ = _opened(args)
        path = folder / STAMP_FILE
        text = path.read_text() if path.is_file() else "{}"  # the repository in git serves no release
        stamp = ReleaseStamp.from_json(text) if path.is_file() else None
        self._text, self._entrance = text.encode(), entrance
        self._loaded = LoadedRelease(stamp) if stamp and entrance == "raw" else None
        self._counts = RequestCounts(stamp, warm_ups(json.loads(args["model_config"])))
        self._busy = Busy()

    def serve(self, requests: Sequence[Any], work: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
        """The responses to a batch: those of `work`, which answers each with `answered`, or none comes in."""
        if self._busy.draining():
            responses = [self._turned_away(request) for request in requests]
        else:
            with self._busy.with_(len(requests)):
                responses = work(requests)
        self._counts.publish()
        return responses

    def answered(self, modalities: Sequence[Modality], run: Callable[[], Outcome], request_id: str) -> Any:
        """The response to a request of these modalities: the tensors that `run` gives, or its refusal."""
        try:
            outcome = run()
        except InvalidInput as error:
            outcome = _untraced(error)
        except Exception as error:
            return _fault(error, request_id)
        refused = (outcome.field, outcome.code) if isinstance(outcome, InvalidInput) else None
        self._counts.note(self._pipeline(modalities), refused)
        if isinstance(outcome, InvalidInput):
            return _refusal(outcome)
        batch = max((len(array) for array in outcome.values()), default=1)
        return _response({**outcome, RELEASE.name: np.full((batch, 1), self._text, np.object_)})

    def _turned_away(self, request: Any) -> Any:
        asked = {tensor.name() for tensor in request.inputs()}
        self._counts.note(self._pipeline([m for m in MODALITIES if asked & NAMES[m]]), ("", "draining"))
        return pb.InferenceResponse(error=pb.TritonError(DRAINING, pb.TritonError.UNAVAILABLE))

    def _pipeline(self, modalities: Sequence[Modality]) -> str:
        return pipeline_name(modalities, self._entrance) if modalities else "none"

    def leave(self) -> None:
        if self._loaded:
            self._loaded.leave()


class PreprocessModel:
    """`preprocess`: bytes [batch, 1] of some modalities -> their ready tensors.

    Items are prepared on a few threads: decoders and resamplers work outside Python's lock. A refusal travels as a
    value: as a raised error its traceback would hold on to the request, and with it to shared memory, until Python's
    cycle collector next runs.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        _, folder, parameters = _opened(args)
        self._entry = Entry(args, "raw")
        self._preprocessors = open_preprocessors(folder, Limits.from_text(parameters))
        self._pool = ThreadPoolExecutor(len(MODALITIES), "preprocess")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return self._entry.serve(requests, self._answers)

    def finalize(self) -> None:
        self._entry.leave()
        self._pool.shutdown()

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        started = [(self._start(request), request.request_id()) for request in requests]
        return [self._entry.answered([*one], partial(_collected, one), request_id) for one, request_id in started]

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
        self._entry = Entry(args, "tensors")
        self._vocabulary = open_config(folder).vocabulary

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return self._entry.serve(requests, lambda batch: [self._answer(request) for request in batch])

    def _answer(self, request: Any) -> Any:
        inputs = {spec.name: array for spec in ALL_READY if (array := _tensor(request, spec.name)) is not None}
        modalities = [m for m in MODALITIES if NAMES[m] & inputs.keys()]
        return self._entry.answered(modalities, partial(self._checked, inputs), request.request_id())

    def _checked(self, inputs: dict[str, Array]) -> dict[str, Array]:
        check_ready_tensors(inputs, self._vocabulary)
        return inputs


class EngineModel:
    """`encode_*` and `fuse`: contract inputs -> contract outputs, whole batches through one engine run."""

    def initialize(self, args: Mapping[str, str]) -> None:
        self._stage, folder, parameters = _opened(args)
        os.nice(int(parameters.get("niceness", "0")))  # its threads start with it
        self._engine = open_engine(folder, threads=int(parameters.get("threads", "0")))
        self._busy = Busy()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        with self._busy.with_(len(requests)):
            return self._execute(requests)

    def _execute(self, requests: Sequence[Any]) -> list[Any]:
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
                responses[index] = _fault(error, requests[index].request_id())
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
        return _untraced(error)


def _untraced(error: InvalidInput) -> InvalidInput:
    """The same without a traceback, which would hold on to the request and its tensors."""
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


def _response(outputs: Mapping[str, Array]) -> Any:
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()])


def _refusal(error: InvalidInput) -> Any:
    """The caller's error: INVALID_ARG with field and code."""
    return pb.InferenceResponse(error=pb.TritonError(error.to_wire(), pb.TritonError.INVALID_ARG))


def _fault(error: Exception, request_id: str) -> Any:
    """Ours: INTERNAL with its kind and message. The log has its kind and place alone: messages may quote content."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    pb.Logger.log_error(f"request {request_id or 'without id'}: {type(error).__name__} at {where}")
    return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL))
