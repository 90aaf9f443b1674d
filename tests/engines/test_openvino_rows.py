"""int8 products with a scale a row: as near to the exact ones as eight bits allow, whatever the rows hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from cmt_engine.cpu import sums_int8_in_16_bits
from cmt_engine.openvino_cpu import compile_for_cpu
from cmt_engine.openvino_feature_encoder import quantize_feature_encoder, turn_frames
from cmt_engine.openvino_rows import MOST_OF_EIGHT_BITS, MOST_OF_SEVEN_BITS, array, product, rows_of_gelu
from cmt_pipeline.buckets import frames_of
from cmt_pipeline.tensors import Array, Arrays

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

#: That a weight becomes on this processor.
MOST = MOST_OF_SEVEN_BITS if sums_int8_in_16_bits() else MOST_OF_EIGHT_BITS


def run(model: openvino.Model, inputs: Arrays | list[Array]) -> Array:
    return np.array(compile_for_cpu(model, OPTIONS)(inputs)[0])


def relative(found: Array, wanted: Array) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def exact_and_in_int8(weights: Array) -> tuple[openvino.Model, openvino.Model]:
    hidden = ops.parameter([1, -1, weights.shape[1]], np.float32, "hidden")
    activations = ops.gelu(hidden, "erf")
    exact, narrow = (
        ops.matmul(activations, array(weights), False, True),
        product(rows_of_gelu(activations), weights, MOST),
    )
    return openvino.Model([ops.result(exact)], [hidden]), openvino.Model([ops.result(narrow)], [hidden])


def test_quiet_rows_keep_their_digits_beside_loud_ones_and_outliers() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((1, 12, 64)).astype(np.float32)
    hidden[0, ::2] *= 30
    hidden[0, 3, 5] = 20
    exact, narrow = exact_and_in_int8(rng.standard_normal((32, 64)).astype(np.float32))
    wanted, found = run(exact, [hidden])[0], run(narrow, [hidden])[0]
    assert "FakeQuantize" in {node.get_type_name() for node in narrow.get_ops()}
    for row in range(len(found)):
        assert 0 < relative(found[row], wanted[row]) < 0.02, row


def test_rows_below_zero_everywhere_are_no_division_by_zero() -> None:
    exact, narrow = exact_and_in_int8(np.eye(8, dtype=np.float32))
    hidden = np.full((1, 3, 8), -40, np.float32)
    hidden[0, 1] = -0.75  # where a GELU is least
    np.testing.assert_allclose(run(narrow, [hidden]), run(exact, [hidden]), atol=2e-3)


def sounds(lengths: list[int], size: int) -> dict[str, Array]:
    """Speech-like bursts with silence between them, scaled as the contract has it, and padded."""
    rng = np.random.default_rng(7)
    values = np.zeros((len(lengths), size), np.float32)
    for row, length in enumerate(lengths):
        time = np.arange(length) / 16_000
        tone = np.sin(2 * np.pi * rng.uniform(90, 250) * time) + 0.3 * rng.standard_normal(length)
        sound = tone * np.clip(np.sin(2 * np.pi * 3 * time), 0, None) + 1e-3 * rng.standard_normal(length)
        values[row, :length] = (sound - sound.mean()) / sound.std()
    return {"input_values": values, "num_samples": np.array(lengths)[:, None]}


@pytest.fixture(scope="module")
def both(graphs: Mapping[str, Path]) -> tuple[openvino.CompiledModel, openvino.CompiledModel]:
    """The mini preset's audio encoder, and with its feature encoder in int8."""
    model = openvino.convert_model(str(graphs["encode_audio"]))
    exact = compile_for_cpu(model.clone(), OPTIONS)
    assert quantize_feature_encoder(model)
    return exact, compile_for_cpu(model, OPTIONS)


@pytest.mark.long
@pytest.mark.parametrize(
    ("lengths", "size"),
    [([16_000], 16_000), ([400], 400), ([719, 500], 719), ([720], 720), ([32_000, 9_999, 400], 32_000)],
)
def test_the_feature_encoder_answers_as_before(
    lengths: list[int], size: int, both: tuple[openvino.CompiledModel, openvino.CompiledModel]
) -> None:
    """Frame for frame, whatever the length, also where the clip is padded."""
    inputs = sounds(lengths, size)
    (wanted, mask, *_), (found, found_mask, *_) = (model(inputs).to_tuple() for model in both)
    assert wanted.shape == found.shape == (len(lengths), frames_of(size), 256)
    np.testing.assert_array_equal(mask, found_mask)
    for row in range(len(lengths)):
        real = mask[row].astype(bool)
        assert 0 < relative(found[row][real], wanted[row][real]) < 0.1


def test_padding_doesnt_change_an_answer(both: tuple[openvino.CompiledModel, openvino.CompiledModel]) -> None:
    short, padded = sounds([8_000], 8_000), sounds([8_000], 32_000)
    frames = frames_of(8_000)
    alone, among = both[1](short)[0], both[1](padded)[0]
    np.testing.assert_allclose(among[:, :frames], alone, atol=1e-3)


def test_frames_that_a_product_turns_are_turned_before_it() -> None:
    """As of DistilHuBERT, which has no norm between its convolutions and their projection."""
    rng = np.random.default_rng(0)
    hidden = ops.parameter([1, 8, -1], np.float32, "hidden")  # [batch, channels, frames]
    weights = rng.standard_normal((4, 8)).astype(np.float32)
    turned = ops.matmul(ops.gelu(hidden, "erf"), array(weights), True, True)
    model = openvino.Model([ops.result(ops.add(turned, array(np.ones((1, 1, 4), np.float32))))], [hidden])
    inputs = [rng.standard_normal((1, 8, 5)).astype(np.float32)]
    wanted = run(model, inputs)
    (name,) = turn_frames(model)
    (product,) = (node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")
    assert product.get_friendly_name() == name
    assert product.input_value(0).get_node().get_type_name() == "Transpose"
    np.testing.assert_allclose(run(model, inputs), wanted, atol=1e-5)
    assert turn_frames(model) == []


def test_a_feature_encoder_without_a_norm_behind_it_answers_as_before(graphs: Mapping[str, Path]) -> None:
    """The mini preset's, cut off behind its convolutions, and a product that turns what they give."""
    whole = openvino.convert_model(str(graphs["encode_audio"]))
    last = [node for node in whole.get_ordered_ops() if node.get_type_name() == "Convolution"][6]
    (gelu,) = (target.get_node() for target in last.output(0).get_target_inputs())
    channels = gelu.output(0).get_partial_shape()[1].get_length()
    weights = array(np.random.default_rng(0).standard_normal((16, channels)).astype(np.float32))
    turned = ops.result(ops.matmul(gelu.output(0), weights, True, True))
    model = openvino.Model([turned], whole.get_parameters()).clone()
    exact = compile_for_cpu(model.clone(), OPTIONS)
    assert not quantize_feature_encoder(model)
    assert len(turn_frames(model)) == 1
    assert quantize_feature_encoder(model)
    inputs = sounds([16_000], 16_000)
    wanted, found = exact(inputs)[0], compile_for_cpu(model, OPTIONS)(inputs)[0]
    assert found.shape == wanted.shape == (1, frames_of(16_000), 16)
    assert 0 < relative(found, wanted) < 0.1


def test_what_isnt_wav2vec2_stays_as_it_is() -> None:
    """Such as Wav2Vec2's "layer" flavour, whose convolutions have biases and norms."""
    sound = ops.parameter([1, -1], np.float32, "input_values")
    hidden = ops.unsqueeze(sound, ops.constant(np.int64(1)))
    channels = 1
    for width, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        kernel = array(np.ones((4, channels, width), np.float32))
        hidden = ops.convolution(hidden, kernel, [stride], [0], [0], [1])
        hidden = ops.gelu(ops.add(hidden, array(np.ones((1, 4, 1), np.float32))), "erf")
        channels = 4
    model = openvino.Model([ops.result(hidden)], [sound])
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    assert not quantize_feature_encoder(model)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before
