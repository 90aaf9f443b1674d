"""Grouped convolutions joined into larger groups: the same function, and right in bf16 too."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from cmt_engine.openvino_cpu import compile_for_cpu
from cmt_engine.openvino_groups import LEAST_CHANNELS, join_small_groups, joined_groups
from cmt_pipeline.tensors import Array

CASES = [(128, 16), (64, 16), (192, 16), (16, 2), (24, 4), (768, 16), (32, 32)]
IDS = [f"{channels} channels in {groups}" for channels, groups in CASES]
RNG = np.random.default_rng(0)


def convolution(channels: int, groups: int) -> openvino.Model:
    size = channels // groups
    sound = ops.parameter([-1, channels, -1], np.float32)
    weights = RNG.normal(size=(groups, size, size, 16)).astype(np.float32) / np.sqrt(16 * size)
    return openvino.Model([ops.group_convolution(sound, ops.constant(weights), [1], [8], [8], [1])], [sound])


def answer(model: openvino.Model, sound: Array, precision: str) -> Array:
    compiled = compile_for_cpu(model, {"INFERENCE_PRECISION_HINT": precision})
    return np.array(compiled(sound)[0])


@pytest.mark.parametrize(("channels", "groups"), CASES, ids=IDS)
def test_joined_groups_compute_the_same(channels: int, groups: int) -> None:
    model, sound = convolution(channels, groups), RNG.normal(size=(2, channels, 50)).astype(np.float32)
    wanted = answer(model, sound, "f32")
    join_small_groups(model)
    assert np.abs(answer(model, sound, "f32") - wanted).max() < 1e-4
    narrow = answer(model, sound, "bf16")
    assert np.sqrt(np.mean((narrow - wanted) ** 2) / np.mean(wanted**2)) < 0.01


@pytest.mark.parametrize(("channels", "groups"), CASES, ids=IDS)
def test_groups_are_as_large_as_they_must_be_and_no_larger(channels: int, groups: int) -> None:
    size = channels // groups
    weights = np.ones((groups, size, size, 3), np.float32)
    joined = joined_groups(weights)
    assert joined.shape[0] * joined.shape[1] == channels
    if size == 1 or size >= LEAST_CHANNELS:
        assert joined is weights
    else:
        assert joined.shape[2] >= LEAST_CHANNELS or joined.shape[0] == 1
        assert joined.sum() == weights.sum()
