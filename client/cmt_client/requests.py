"""Requests: picks the pipeline for what is given and checks it before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np

from cmt_client.encode import ENCODERS, AudioInput, ImageInput, TextInput
from cmt_client.errors import InvalidInput
from cmt_client.operations import Infer
from cmt_client.tracing import new_request_id, request_headers
from cmt_pipeline.limits import MAX_BATCH_SIZE, Limits
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.pipelines import PIPELINES, Pipeline, pipeline_name
from cmt_pipeline.stages import RAW, READY
from cmt_pipeline.tensors import Array, TensorSpec

READY_SPECS: dict[str, tuple[Modality, TensorSpec]] = {
    spec.name: (modality, spec) for modality, specs in READY.items() for spec in specs
}


class Item(TypedDict, total=False):
    """One person's moment: any of the three modalities, at least one."""

    image: ImageInput | None
    audio: AudioInput | None
    text: TextInput | None


def from_item(item: Item | Mapping[str, Any], limits: Limits) -> Infer:
    """A request of one item to a raw entrance. Raises InvalidInput."""
    unknown = sorted(set(item) - set(MODALITIES))
    if unknown:
        raise InvalidInput(unknown[0], "unknown", f"no such modality; expected {', '.join(MODALITIES)}")
    inputs: dict[str, Array] = {}
    for modality in MODALITIES:
        value = item.get(modality)
        if value is not None:
            tensor = np.empty((1, 1), np.object_)
            tensor[0, 0] = ENCODERS[modality](value, limits)
            inputs[RAW[modality].name] = tensor
    if not inputs:
        raise InvalidInput("input", "missing", f"got no modality; expected one or more of {', '.join(MODALITIES)}")
    return _infer(PIPELINES[pipeline_name(inputs)], inputs)


def from_tensors(tensors: Mapping[str, Any]) -> Infer:
    """A request of [batch, …] arrays to a tensors entrance. Raises InvalidInput, naming the tensor."""
    for name in tensors:
        if name not in READY_SPECS:
            raise InvalidInput(name, "unknown", f"no such tensor; expected some of {', '.join(READY_SPECS)}")
    if not tensors:
        raise InvalidInput("input", "missing", f"got no tensor; expected some of {', '.join(READY_SPECS)}")
    modalities = {READY_SPECS[name][0] for name in tensors}
    pipeline = PIPELINES[pipeline_name(modalities, "tensors")]
    inputs = {spec.name: _checked(spec, tensors) for spec in pipeline.inputs}
    _check_batch(inputs)
    return _infer(pipeline, inputs)


def named(request: Infer, request_id: str | None, headers: Mapping[str, str] | None) -> Infer:
    """The request with an id, a new one where none is given, and with its headers and trace context."""
    return replace(request, request_id=request_id or new_request_id(), headers=request_headers(headers))


def _checked(spec: TensorSpec, tensors: Mapping[str, Any]) -> Array:
    if spec.name not in tensors:
        raise InvalidInput(spec.name, "missing", f"missing {spec.describe()}: it belongs to what was given")
    array = np.asarray(tensors[spec.name])
    wrong = spec.mismatch(array)
    if wrong:
        raise InvalidInput(spec.name, "dtype" if array.dtype != spec.numpy_dtype else "shape", wrong)
    return array


def _check_batch(inputs: Mapping[str, Array]) -> None:
    sizes = {name: len(array) for name, array in inputs.items()}
    first = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != first:
            raise InvalidInput(name, "batch", f"got a batch of {size} beside one of {first}; expected equal ones")
    if first > MAX_BATCH_SIZE:
        raise InvalidInput(
            next(iter(sizes)),
            "too_large",
            f"got a batch of {first}; at most {MAX_BATCH_SIZE} are accepted: split it",
        )


def _infer(pipeline: Pipeline, inputs: Mapping[str, Array]) -> Infer:
    return Infer(pipeline.name, inputs, tuple(spec.name for spec in pipeline.outputs))
