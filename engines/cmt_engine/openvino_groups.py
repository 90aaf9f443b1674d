"""Grouped convolutions that OpenVINO computes right in bf16 on every processor.

Seen with OpenVINO 2026.4 on processors with AMX (Sapphire Rapids): in bf16 a grouped convolution of fewer than 16
channels a group gives numbers that have nothing to do with the right ones (relative error 1.1), without a word.
Wav2Vec2's positional convolution is one where the encoder is small: 128 channels in 16 groups. Neighbouring groups
joined into one, with zeros between their channels, compute the same function.
"""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset13 as ops

from cmt_pipeline.tensors import Array

LEAST_CHANNELS = 16  # of a group


def join_small_groups(model: openvino.Model) -> None:
    """Rewrites the model's grouped convolutions with constant weights so that their groups are large enough."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "GroupConvolution":
            continue
        weights = node.input_value(1).get_node()
        if weights.get_type_name() != "Constant":
            continue
        kept: Array = weights.data
        joined = joined_groups(kept)
        if len(joined) < len(kept):
            node.input(1).replace_source_output(ops.constant(joined).output(0))
            node.validate_and_infer_types()


def joined_groups(weights: Array) -> Array:
    """Weights [groups, out, in, ...] -> [fewer groups, more out, more in, ...], with LEAST_CHANNELS in where possible.

    A depthwise convolution (in 1) has kernels of its own in OpenVINO and stays.
    """
    groups, rows, columns = weights.shape[:3]
    divisors = [d for d in range(1, groups + 1) if groups % d == 0]
    factor = next((d for d in divisors if d * columns >= LEAST_CHANNELS), groups)
    if columns == 1 or factor == 1:
        return weights
    joined = np.zeros((groups // factor, factor, rows, factor, columns, *weights.shape[3:]), weights.dtype)
    for index in range(factor):
        joined[:, index, :, index] = weights[index::factor]
    return joined.reshape(groups // factor, factor * rows, factor * columns, *weights.shape[3:])
