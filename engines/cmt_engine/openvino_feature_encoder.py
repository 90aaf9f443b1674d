"""Wav2Vec2's feature encoder in int8 for OpenVINO's CPU plugin: half the work of the audio encoder.

Its convolutions take one scale for all they read. That won't do: the GroupNorm brings each *channel* to one range, but
frames of silence and of speech are a hundred times apart, and a LayerNorm blows up what eight bits have left of the
quiet ones. Products of rows can have a scale a row (`openvino_rows`), and a convolution with stride 2 is one: its
windows are the rows of [frames / 2, 2 * channels], and kernel 3 adds the first half of the row after. Frames stay
[batch, time, channels] throughout, so that nothing is transposed on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino
from openvino import Node, Output
from openvino import opset13 as ops

from cmt_engine.openvino_cpu import compile_for_cpu
from cmt_engine.openvino_rows import MOST_OF_EIGHT_BITS, Rows, array, integers, number, product, rows_of_gelu
from cmt_pipeline.buckets import CONV_KERNELS, CONV_STRIDES, HOP, RECEPTIVE_FIELD, SAMPLE_RATE_HZ
from cmt_pipeline.tensors import Array

#: Three quarters of the work. Of the trained `mini`, these two add 0.02 to the error of the features, four 0.08.
INT8_LAYERS = (1, 2)

FIRST_KERNEL, FIRST_STRIDE = CONV_KERNELS[0], CONV_STRIDES[0]
SAMPLES_OF_NO_FRAME = RECEPTIVE_FIELD - HOP
#: The orthonormal DCT of as many samples as the first kernel has, a row a frequency.
COSINES = np.cos(np.pi * np.outer(np.arange(FIRST_KERNEL), np.arange(FIRST_KERNEL) + 0.5) / FIRST_KERNEL)
COSINES *= np.sqrt(np.where(np.arange(FIRST_KERNEL) == 0, 1, 2) / FIRST_KERNEL)[:, None]

EPSILON = 1e-5  # of torch.nn.GroupNorm
END = 2**31 - 1


@dataclass(frozen=True)
class FeatureEncoder:
    """Weights of the convolutions, [out, in, kernel], and of the GroupNorm after the first, [channels]."""

    kernels: tuple[Array, ...]
    gain: Array
    offset: Array


def quantize_feature_encoder(model: openvino.Model, most: int = MOST_OF_EIGHT_BITS) -> bool:
    """Replaces the feature encoder in the audio encoder `model`, in place. most: that a weight becomes.

    False, and `model` is left as it is, where the convolutions have biases or another norm than a GroupNorm of one
    group a channel after the first: Wav2Vec2's "layer" flavour.
    """
    convolutions = [n for n in model.get_ordered_ops() if n.get_type_name() == "Convolution"][: len(CONV_KERNELS)]
    ends = [_activation_of(node) for node in convolutions[1:]]
    if len(convolutions) < len(CONV_KERNELS) or not all(ends):
        return False
    frames = _only_consumer(ends[-1])
    weights = _weights(model, convolutions)
    if weights is None or frames is None or frames.get_type_name() != "Transpose":
        return False
    ports = {name: port for port in model.inputs for name in port.get_names()}
    consumers = frames.output(0).get_target_inputs()
    replacement = _frames(weights, ports["input_values"], ports["num_samples"], most)
    for consumer in consumers:
        consumer.replace_source_output(replacement.output(0))
    model.validate_nodes_and_infer_types()
    return True


def turn_frames(model: openvino.Model) -> list[str]:
    """Names of the products that read what the convolutions gave, once transpositions that OpenVINO made theirs stand
    before them again, in place: where no norm is between, as in DistilHuBERT, `quantize_feature_encoder` needs that."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_a"]:
            continue
        activations, weights = node.input_values()
        if activations.get_node().get_type_name() == "Gelu":
            frames = ops.transpose(activations, integers(0, 2, 1))
            product = ops.matmul(frames, weights, False, node.get_attributes()["transpose_b"])
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(product.output(0))
            found.append(product.get_friendly_name())
    return found


def _frames(weights: FeatureEncoder, sound: Output, num_samples: Output, most: int) -> Node:
    """`sound` [batch, samples], `num_samples` [batch, 1] -> [batch, frames, channels]."""
    samples = ops.slice(ops.shape_of(sound), integers(1), integers(2), integers(1))
    frames = ops.divide(ops.subtract(samples, integers(SAMPLES_OF_NO_FRAME)), integers(HOP))
    # Every layer of stride 2 halves the rows, so there is one more of them than frames; it has read beyond the sound.
    count = ops.add(frames, integers(1))
    windows = _windows(sound, count)
    hidden = _first_layer(weights, windows, num_samples)
    for index, kernel in enumerate(weights.kernels[1:], start=1):
        hidden = _layer(hidden, kernel, most if index in INT8_LAYERS else None)
    return ops.slice(hidden, integers(0), frames, integers(1), integers(1))


def _windows(sound: Output, frames: Node) -> Node:
    """What the first convolution sees, [batch, frames * HOP / FIRST_STRIDE, FIRST_KERNEL]; zeros after the sound."""
    spare = HOP + FIRST_STRIDE
    needed = ops.add(ops.multiply(frames, integers(HOP)), integers(FIRST_STRIDE))
    padded = ops.pad(sound, integers(0, 0), integers(0, spare), "constant", number(0))
    strides = ops.reshape(
        ops.slice(padded, integers(0), needed, integers(1), integers(1)), integers(0, -1, FIRST_STRIDE), True
    )
    return ops.concat([_sliced(strides, 0, -1), _sliced(strides, 1, END)], 2)


def _first_layer(weights: FeatureEncoder, windows: Node, num_samples: Output) -> Node:
    """Convolution, GroupNorm over the frames that lie within the clip, GELU; see `encoders.masked_group_norm`.

    What a channel's statistics are follows from the windows' mean and covariance, ten numbers a frame instead of
    hundreds, so that the GroupNorm becomes part of the product's weights. The windows are turned by a DCT first: as
    samples their covariance says the same hundred times, which bf16 would lose a filter's small difference in.
    """
    kernel = array(weights.kernels[0][:, 0] @ COSINES.T)
    length = ops.maximum(num_samples, integers(RECEPTIVE_FIELD))
    length = ops.add(ops.divide(ops.subtract(length, integers(FIRST_KERNEL)), integers(FIRST_STRIDE)), integers(1))
    size = ops.gather(ops.shape_of(windows), _index(1), _index(0))
    positions = ops.range(_index(0), size, _index(1), "i64")
    mask = ops.unsqueeze(ops.convert(ops.less(ops.unsqueeze(positions, _index(0)), length), np.float32), _index(2))
    count = ops.unsqueeze(ops.convert(length, np.float32), _index(2))
    turned = ops.matmul(windows, array(COSINES), False, True)
    mean = ops.divide(ops.reduce_sum(ops.multiply(turned, mask), integers(1), True), count)
    centred = ops.subtract(turned, mean)
    covariance = ops.divide(ops.matmul(ops.multiply(centred, mask), centred, True, False), count)
    variance = ops.reduce_sum(ops.multiply(ops.matmul(kernel, covariance, False, False), kernel), integers(2), True)
    scale = ops.divide(array(weights.gain[:, None]), ops.sqrt(ops.add(variance, number(EPSILON))))
    scaled = ops.multiply(kernel, scale)  # [batch, channels, FIRST_KERNEL]
    offset = ops.broadcast(array(weights.offset[None, :, None]), ops.shape_of(scale))
    ones = ops.broadcast(number(1), ops.shape_of(mask))
    return ops.gelu(ops.matmul(ops.concat([centred, ones], 2), ops.concat([scaled, offset], 2), False, True), "erf")


def _layer(hidden: Node, kernel: Array, most: int | None) -> Node:
    """A convolution of stride 2 and kernel 2 or 3, and its GELU: [batch, 2n, in] -> [batch, n, out]. most: that a
    weight becomes in int8; None: as it is.

    What kernel 3 reads beyond the last row is the first: a number that nothing looks at.
    """
    out, channels, width = kernel.shape
    pairs = ops.reshape(hidden, integers(0, -1, 2 * channels), True)
    both, third = kernel[:, :, :2].transpose(0, 2, 1).reshape(out, 2 * channels), kernel[:, :, 2:].reshape(out, -1)
    if most:
        rows = rows_of_gelu(pairs)
        result = product(rows, both, most)
    else:
        result = ops.matmul(pairs, array(both), False, True)
    if width == 3 and most:
        first = Rows(_next(_sliced(rows.steps, 0, channels, axis=2)), _next(rows.scale))
        result = ops.add(result, product(first, third, most))
    elif width == 3:
        result = ops.add(result, ops.matmul(_next(_sliced(pairs, 0, channels, axis=2)), array(third), False, True))
    return ops.gelu(result, "erf")


def _next(rows: Node) -> Node:
    """Each row's successor, the first after the last."""
    return ops.concat([_sliced(rows, 1, END), _sliced(rows, 0, 1)], 1)


def _sliced(node: Node, start: int, stop: int, axis: int = 1) -> Node:
    return ops.slice(node, integers(start), integers(stop), integers(1), integers(axis))


def _weights(model: openvino.Model, convolutions: list[Node]) -> FeatureEncoder | None:
    kernels = [node.input_value(1).get_node() for node in convolutions]
    if any(node.get_type_name() != "Constant" for node in kernels):
        return None
    arrays = tuple(np.asarray(node.data, np.float32) for node in kernels)
    if [k.shape[2:] for k in arrays] != [(size,) for size in CONV_KERNELS]:
        return None
    activation = convolutions[1].input_value(0).get_node()
    if activation.get_type_name() != "Gelu":
        return None
    norm = _norm_between(model, convolutions[0].output(0), activation.input_value(0))
    return None if norm is None else FeatureEncoder(arrays, *norm)


def _norm_between(model: openvino.Model, start: Output, end: Output) -> tuple[Array, Array] | None:
    """Gain and offset of the GroupNorm from `start` to `end`, by what it does to noise: exporters fold its weights
    into whatever they like, and leave ones and zeros out. None if what it does is something else."""
    noise = np.random.default_rng(0).standard_normal((1, SAMPLE_RATE_HZ)).astype(np.float32)
    part = openvino.Model([ops.result(start), ops.result(end)], model.get_parameters())
    compiled = compile_for_cpu(part.clone(), {"INFERENCE_PRECISION_HINT": "f32"})
    before, after = compiled({"input_values": noise, "num_samples": np.array([[noise.shape[1]]])}).to_tuple()
    centred = before - before.mean(axis=2, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + EPSILON)
    offset = after.mean(axis=2, keepdims=True)
    gain = (normed * after).sum(axis=2, keepdims=True) / (normed**2).sum(axis=2, keepdims=True)
    if not np.allclose(normed * gain + offset, after, rtol=1e-3, atol=1e-3):
        return None
    return gain[0, :, 0], offset[0, :, 0]


def _activation_of(node: Node) -> Node | None:
    found = _only_consumer(node)
    return found if found is not None and found.get_type_name() == "Gelu" else None


def _only_consumer(node: Node) -> Node | None:
    consumers = list(node.output(0).get_target_inputs())
    return consumers[0].get_node() if len(consumers) == 1 else None


def _index(value: int) -> Node:
    return ops.constant(np.int64(value))
