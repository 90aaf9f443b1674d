"""What Triton's python backend runs: thin adapters from its requests to preprocessing and engines.

A request is answered or refused on its own: whatever one carries, the others of its batch get the answer that they
would have got alone. The stages that a request meets first say which release answers, count, and turn away whoever
would wait too long; those behind them must not refuse any, for Triton 2.51 can't bear it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cmt_engine.engine import open_engine
from cmt_engine.gpu import see_one_gpu
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import open_config
from cmt_pipeline.stages import ALL_READY, FACE, IMAGE_MASK, READY
from cmt_pipeline.tensors import Array
from cmt_server.checks import check_ready_tensors
from cmt_server.draining import Busy
from cmt_server.entry import Entry
from cmt_server.isolation import Isolation
from cmt_server.pool import Outcome, PreparePool
from cmt_server.stage_model import opened, response

NO_FACE = InvalidInput(
    "image",
    "no_face",
    "got a picture without a face, and nothing beside it; expected a face: this release looks at nothing else",
)


class PreprocessModel:
    """`preprocess`: bytes [batch, 1] of some modalities -> their ready tensors.

    Answers are sent from the pool's threads: while requests are being prepared the next ones are let in or refused.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        _, folder, parameters = opened(args)
        limits = Limits.from_text(parameters)
        self._entry = Entry(args, "raw")
        self._isolation = Isolation(folder, limits)
        self._image_tokens = open_config(folder).image_tokens
        self._pool = PreparePool(self._isolation.preprocessors, limits.max_held_bytes)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A refusal for each request that gets one at once; None for one that the pool will answer."""
        return self._entry.serve(requests, self._start)

    def finalize(self) -> None:
        self._pool.close()
        self._isolation.close()
        self._entry.leave()

    def _start(self, request: Any) -> Any:
        tensors = {m: tensor for m in MODALITIES if (tensor := pb.get_input_tensor_by_name(request, m)) is not None}
        visit = self._entry.admit(request, tuple(tensors))
        if visit.refused:
            return self._entry.answered(visit, visit.refused)
        files = {m: list(tensor.as_numpy()[:, 0]) for m, tensor in tensors.items()}
        refused = self._pool.room_for(files)
        if refused:
            return self._entry.answered(visit, refused)
        sender = request.get_response_sender()

        def done(outcome: Outcome) -> None:
            answer = self._entry.answered(visit, self._present(outcome, visit.modalities))
            if self._pool.idle:  # nothing else will do it soon
                self._entry.publish()
            sender.send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self._entry.handed_over()

        self._entry.keep()
        self._pool.prepare(files, visit.late, done)
        return None

    def _present(self, outcome: Outcome, modalities: Sequence[Modality]) -> Outcome:
        """With the mask that says which pictures count; a refusal where nothing would be left of an item."""
        if isinstance(outcome, Exception) or FACE.name not in outcome:
            return outcome
        notes = [FaceNote.from_json(note) for note in outcome[FACE.name][:, 0]]
        here = np.array([[note is None or note.used != "absent"] for note in notes], np.int64)  # [batch, 1]
        if len(modalities) == 1 and not here.all():
            return NO_FACE
        return {**outcome, IMAGE_MASK.name: here.repeat(self._image_tokens, axis=1)}


class CheckModel:
    """`check`: ready tensors of some modalities -> the same, once they are known to be sound."""

    def initialize(self, args: Mapping[str, str]) -> None:
        _, folder, _ = opened(args)
        self._entry = Entry(args, "tensors")
        self._vocabulary = open_config(folder).vocabulary

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return self._entry.serve(requests, self._answer)

    def finalize(self) -> None:
        self._entry.leave()

    def _answer(self, request: Any) -> Any:
        inputs = {spec.name: array for spec in ALL_READY if (array := _tensor(request, spec.name)) is not None}
        modalities = tuple(m for m in MODALITIES if any(spec.name in inputs for spec in READY[m]))
        visit = self._entry.admit(request, modalities)
        return self._entry.answered(visit, visit.refused or visit.late() or self._checked(inputs))

    def _checked(self, inputs: dict[str, Array]) -> Outcome:
        try:
            check_ready_tensors(inputs, self._vocabulary)
        except InvalidInput as error:
            # Without a traceback, which would hold on to the request and its tensors.
            return InvalidInput(error.field, error.code, error.message)
        except Exception as error:
            return error
        return inputs


class EngineModel:
    """`encode_*` and `fuse`: contract inputs -> contract outputs, whole batches through one engine run."""

    def initialize(self, args: Mapping[str, str]) -> None:
        self._stage, folder, parameters = opened(args)
        os.nice(int(parameters.get("niceness", "0")))  # its threads start with it
        if args["model_instance_kind"] == "GPU":
            see_one_gpu(int(args["model_instance_device_id"]))
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
                responses[index] = response(error, requests[index].request_id())
            return
        start = 0
        for index, inputs in group:
            stop = start + len(next(iter(inputs.values())))
            wanted = requests[index].requested_output_names()
            responses[index] = response({name: outputs[name][start:stop] for name in wanted})
            start = stop


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _tensor(request: Any, name: str) -> Any:
    """An input as an array, or None if the request doesn't have it."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
