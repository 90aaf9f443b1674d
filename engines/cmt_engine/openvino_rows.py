"""Products in int8 whose rows each have a scale of their own, for OpenVINO's CPU plugin.

What a GELU lets through has no range that one scale fits: rows of silence stand beside rows of speech, a hundred times
as loud. A scale a row, its greatest value, keeps both, as in LLM.int8
(Dettmers et al. 2022, arXiv 2208.07339). And since a GELU lets through nothing below -0.17, rows are moved up by that:
all 256 steps are of use. Scale and shift are taken out of the row before the product and put back after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from openvino import Node, Output
from openvino import opset13 as ops

from cmt_pipeline.tensors import Array

MOST_OF_EIGHT_BITS, MOST_OF_SEVEN_BITS = 127, 63
SHIFT = 0.17  # erf's GELU is never below -0.16998
MOST = 1e4  # keeps infinity out of a row's scale


class Rows(NamedTuple):
    """A tensor [batch, rows, size] as (`steps` * `scale` - SHIFT), the steps of eight bits within [0, 1]."""

    steps: Node
    scale: Node  # [batch, rows, 1]


def rows_of_gelu(activations: Node | Output) -> Rows:
    """The quantised twin of what a GELU gave, [batch, rows, size]."""
    scale = ops.add(ops.clamp(ops.reduce_max(activations, integers(2), True), 0.0, MOST), number(SHIFT))
    unit = ops.divide(ops.add(activations, number(SHIFT)), scale)
    return Rows(ops.fake_quantize(unit, number(0), number(1), number(0), number(1), 256), scale)


def product(rows: Rows, weights: Array, most: int = MOST_OF_EIGHT_BITS) -> Node:
    """The rows' product with `weights`.T, the weights [out, size] in int8 with a scale for each output.

    most: that a weight becomes; two of MOST_OF_SEVEN_BITS times a row's 255 are within 16 bits.
    """
    scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True), 1e-12) / most
    whole = np.round(weights / scale).astype(np.int8)
    narrow = ops.multiply(ops.convert(ops.constant(whole), np.float32), array(scale))
    moved = SHIFT * (whole * scale).sum(axis=1)
    return ops.subtract(ops.multiply(ops.matmul(rows.steps, narrow, False, True), rows.scale), array(moved))


def integers(*values: int) -> Node:
    return ops.constant(np.array(values, np.int64))


def number(value: float) -> Node:
    return ops.constant(np.float32(value))


def array(values: Array) -> Node:
    return ops.constant(np.ascontiguousarray(values, np.float32))
