"""Checks of ready tensors that a client made itself; what `preprocess` made needs none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.stages import ALL_READY
from cmt_pipeline.tensors import Array


def check_ready_tensors(inputs: Mapping[str, Array], vocabulary: int) -> None:
    """InvalidInput unless the tensors have contract shapes and sound values. vocabulary: ids end below it."""
    for spec in ALL_READY:
        if spec.name not in inputs:
            continue
        array = inputs[spec.name]
        problem = spec.mismatch(array)
        if problem:
            raise InvalidInput(spec.name, "wrong_shape", problem)
        if spec.dtype == "FP32" and not np.isfinite(array).all():
            raise InvalidInput(spec.name, "not_finite", "got NaN or infinite values; expected finite ones")
    if "input_values" in inputs:
        _check_range("num_samples", inputs["num_samples"], 1, inputs["input_values"].shape[1])
    if "input_ids" in inputs:
        _check_text(inputs["input_ids"], inputs["attention_mask"], vocabulary)


def _check_text(input_ids: Array, attention_mask: Array, vocabulary: int) -> None:
    if input_ids.shape != attention_mask.shape:
        raise InvalidInput(
            "attention_mask",
            "wrong_shape",
            f"got shape {list(attention_mask.shape)}; expected that of input_ids, {list(input_ids.shape)}",
        )
    _check_range("attention_mask", attention_mask, 0, 1)
    if not attention_mask.any(axis=1).all():
        raise InvalidInput("attention_mask", "empty", "got a mask without any 1; expected one word or more")
    _check_range("input_ids", input_ids, 0, vocabulary - 1)


def _check_range(name: str, array: Array, low: int, high: int) -> None:
    lowest, highest = int(array.min()), int(array.max())
    if lowest < low or highest > high:
        raise InvalidInput(name, "out_of_range", f"got values {lowest} to {highest}; expected {low} to {high}")
