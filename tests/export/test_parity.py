"""Parity: an engine that differs is found out, however it differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cmt_engine.engine import Runner
from cmt_engine.openvino_engine import OPENVINO
from cmt_export.checkpoint import Checkpoint
from cmt_export.model import CrossModalTransformer, run_model, run_stage
from cmt_export.parity import (
    ParityError,
    ParityRow,
    pipeline_parity,
    ready_inputs,
    references,
    stage_inputs,
    stage_parity,
)
from cmt_export.samples import Batch
from cmt_pipeline.modality import SUBSETS, Modality
from cmt_pipeline.pipelines import pipeline_name
from cmt_pipeline.stages import COMPILED_STAGES, STAGES, Stage
from cmt_pipeline.tensors import Array, Arrays

Change = Callable[[dict[str, Array]], object]
compiled = pytest.mark.parametrize("stage", COMPILED_STAGES, ids=lambda stage: stage.name)


class Broken:
    """PyTorch in an engine's place, whose answers are changed from the given run on."""

    def __init__(self, model: CrossModalTransformer, stage: Stage, change: Change, after: int = 0) -> None:
        self._model, self._stage, self._change, self._left = model, stage, change, after

    def run(self, inputs: Arrays) -> dict[str, Array]:
        outputs = {name: array.copy() for name, array in run_stage(self._model, self._stage, inputs).items()}
        if self._left == 0:
            self._change(outputs)
        else:
            self._left -= 1
        return outputs


def nothing(outputs: dict[str, Array]) -> None:
    """A sound engine."""


def noise(size: float) -> Change:
    """On every floating output, in proportion to it; stand-ins stay zero."""

    def change(outputs: dict[str, Array]) -> None:
        rng = np.random.default_rng(0)
        for array in outputs.values():
            if array.dtype == np.float32:
                array *= 1 + rng.normal(scale=size, size=array.shape).astype(np.float32)

    return change


def put(name: str, value: float) -> Change:
    def change(outputs: dict[str, Array]) -> None:
        outputs[name].flat[0] = value

    return change


@pytest.mark.long
@compiled
def test_a_sound_engine_passes(stage: Stage, checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    row = stage_parity(
        Broken(checkpoint.model, stage, nothing),
        OPENVINO,
        stage,
        "fp32",
        references(checkpoint.model, stage, compared[:2]),
    )
    assert row == ParityRow(stage.name, "openvino", "fp32", 2, 0.0, 1e-4)
    assert row.passed


@compiled
@pytest.mark.parametrize("size", [3e-5, 1e-3])
def test_noise_is_measured_in_proportion(
    stage: Stage, size: float, checkpoint: Checkpoint, compared: Sequence[Batch]
) -> None:
    engine = Broken(checkpoint.model, stage, noise(size))
    row = stage_parity(engine, OPENVINO, stage, "fp32", references(checkpoint.model, stage, compared[:2]))
    assert row.passed == (size < OPENVINO.tolerances["fp32"].relative)
    assert 0.5 * size < row.error < 3 * size


@pytest.mark.long
@compiled
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("after", [0, 1])
def test_a_value_that_is_no_number_fails(
    stage: Stage, value: float, after: int, checkpoint: Checkpoint, compared: Sequence[Batch]
) -> None:
    """In whichever output and batch it comes."""
    expected = references(checkpoint.model, stage, compared[:2])
    for name in [spec.name for spec in stage.outputs if spec.dtype == "FP32"]:
        engine = Broken(checkpoint.model, stage, put(name, value), after)
        with np.errstate(all="ignore"):
            assert not stage_parity(engine, OPENVINO, stage, "fp32", expected).passed, name


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_mask_that_differs_fails(modality: Modality, checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    stage = STAGES[f"encode_{modality}"]
    for name, value in ((f"{modality}_mask", 0), ("absent_mask", 1), ("absent_features", 1e-9)):
        engine = Broken(checkpoint.model, stage, put(name, value))
        row = stage_parity(engine, OPENVINO, stage, "int8", references(checkpoint.model, stage, compared[:1]))
        assert (row.error, row.passed) == (np.inf, False), name


def test_what_padding_holds_concerns_nobody(checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    stage, batch = STAGES["encode_text"], compared[2]

    def change(outputs: dict[str, Array]) -> None:
        outputs["text_features"][outputs["text_mask"] == 0] = np.nan

    assert (batch.tensors["attention_mask"] == 0).any()
    row = stage_parity(
        Broken(checkpoint.model, stage, change), OPENVINO, stage, "fp32", references(checkpoint.model, stage, [batch])
    )
    assert (row.error, row.passed) == (0.0, True)


def engines_of(model: CrossModalTransformer, **changes: Change) -> dict[str, Runner]:
    return {s.name: Broken(model, s, changes.get(s.name, nothing)) for s in COMPILED_STAGES}


def test_sound_pipelines_pass(checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    rows = pipeline_parity(engines_of(checkpoint.model), OPENVINO, checkpoint.model, "fp32", compared[:2])
    assert [row.what for row in rows] == [pipeline_name(subset) for subset in SUBSETS]
    assert all(row.passed and row.cases == 2 and row.error < 1e-6 for row in rows)


def test_a_broken_encoder_breaks_the_pipelines_that_run_it(checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    """And no others: absent encoders don't run."""
    for change in (put("audio_features", np.nan), noise(1.0)):
        engines = engines_of(checkpoint.model, encode_audio=change)
        rows = pipeline_parity(engines, OPENVINO, checkpoint.model, "fp32", compared[:1])
        assert {row.what: row.passed for row in rows} == {pipeline_name(s): "audio" not in s for s in SUBSETS}


def test_a_probability_that_is_off_fails_by_its_distance(checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    def change(outputs: dict[str, Array]) -> None:
        outputs["probabilities"][0, 2] += 0.01

    for precision, passed in (("fp32", False), ("bf16", True)):
        engines = engines_of(checkpoint.model, fuse=change)
        rows = pipeline_parity(engines, OPENVINO, checkpoint.model, precision, compared[:1])
        assert {row.passed for row in rows} == {passed}
        assert all(row.error == pytest.approx(0.01, rel=1e-3) for row in rows)


def test_fusion_is_fed_as_the_pipelines_feed_it(checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    """Each subset in turn, with stand-ins for what it lacks: the answer is that of the whole model."""
    for subset, inputs in zip(
        SUBSETS, stage_inputs(checkpoint.model, STAGES["fuse"], [compared[0]] * len(SUBSETS)), strict=True
    ):
        came = run_stage(checkpoint.model, STAGES["fuse"], inputs)
        for name, wanted in run_model(checkpoint.model, ready_inputs(compared[0].tensors, subset)).items():
            np.testing.assert_allclose(came[name], wanted, atol=1e-6)


@pytest.mark.long
def test_fusion_is_compared_with_modalities_absent_too(checkpoint: Checkpoint, compared: Sequence[Batch]) -> None:
    inputs = list(stage_inputs(checkpoint.model, STAGES["fuse"], compared))
    presences = {tuple(bool(given[f"{m}_mask"].any()) for m in ("image", "audio", "text")) for given in inputs}
    assert len(presences) == len(SUBSETS)


def test_the_error_names_what_missed_and_how_to_go_on() -> None:
    rows = [
        ParityRow("encode_image", "openvino", "int8", 5, 0.3, 0.25),
        ParityRow("encode_text", "openvino", "int8", 5, 0.2, 0.25),
        ParityRow("emotion", "openvino", "int8", 5, float("nan"), 0.06),
    ]
    error = ParityError(rows)
    assert error.rows == tuple(rows)
    for part in ("encode_image openvino int8: 3.00e-01 > 2e-01", "emotion openvino int8: nan > 6e-02", "--precision"):
        assert part in str(error)
    assert "encode_text" not in str(error)
