"""Which pipeline is asked, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cmt_client import InvalidInput
from cmt_client.requests import from_item, from_tensors
from cmt_pipeline.limits import DEFAULT_LIMITS
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.pipelines import PIPELINES, pipeline_name
from cmt_pipeline.stages import READY

ITEM = {"image": b"an image", "audio": b"a sound", "text": "a text"}


def ready(modalities: tuple[str, ...], batch: int = 2) -> dict[str, Any]:
    """Zeros of the smallest shape."""
    return {
        spec.name: np.zeros((batch, *(axis.sizes[0] for axis in spec.axes)), spec.numpy_dtype)
        for modality in modalities
        for spec in READY[modality]  # type: ignore[index]
    }


@pytest.mark.parametrize("subset", SUBSETS)
def test_each_subset_goes_to_its_pipeline(subset: tuple[str, ...]) -> None:
    request = from_item({m: ITEM[m] for m in reversed(subset)}, DEFAULT_LIMITS)
    assert request.model == pipeline_name(subset)
    assert list(request.inputs) == [spec.name for spec in PIPELINES[request.model].inputs]
    for spec in PIPELINES[request.model].inputs:
        assert spec.mismatch(request.inputs[spec.name]) is None
    for name, array in request.inputs.items():
        expected = ITEM[name]
        assert array[0, 0] == (expected.encode() if isinstance(expected, str) else expected)


@pytest.mark.parametrize("subset", SUBSETS)
def test_each_subset_of_tensors_goes_to_its_pipeline(subset: tuple[str, ...]) -> None:
    request = from_tensors(dict(reversed(ready(subset).items())))
    assert request.model == pipeline_name(subset, "tensors")
    assert list(request.inputs) == [spec.name for spec in PIPELINES[request.model].inputs]


def test_bytes_with_trailing_zeros_stay_whole() -> None:
    request = from_item({"image": b"ab\0\0"}, DEFAULT_LIMITS)
    assert request.inputs["image"][0, 0] == b"ab\0\0"


@pytest.mark.parametrize("item", [{}, {"image": None, "audio": None, "text": None}])
def test_no_modality_is_invalid(item: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="got no modality; expected one or more of image, audio, text"):
        from_item(item, DEFAULT_LIMITS)


def test_an_unknown_modality_is_invalid() -> None:
    with pytest.raises(InvalidInput) as raised:
        from_item({"smell": b"x"}, DEFAULT_LIMITS)
    assert (raised.value.field, raised.value.code) == ("smell", "unknown")


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ready(("audio",)).items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "field", "code"),
    [
        ({}, "input", "missing"),
        ({"pixels": np.zeros((1, 1))}, "pixels", "unknown"),
        (without("num_samples"), "num_samples", "missing"),
        ({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}, "pixel_values", "shape"),
        ({"pixel_values": np.zeros((3, 224, 224), np.float32)}, "pixel_values", "shape"),
        ({"pixel_values": np.zeros((1, 3, 224, 224))}, "pixel_values", "dtype"),
        ({"pixel_values": "no array"}, "pixel_values", "dtype"),
        (ready(("image",), 0), "pixel_values", "shape"),
        (ready(("image",), 9), "pixel_values", "too_large"),
        (ready(("image",), 2) | ready(("text",), 3), "input_ids", "batch"),
        (ready(("text",)) | {"input_ids": np.zeros((2, 17), np.int64)}, "input_ids", "shape"),
    ],
)
def test_wrong_tensors_are_named(tensors: dict[str, Any], field: str, code: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        from_tensors(tensors)
    assert (raised.value.field, raised.value.code) == (field, code)
