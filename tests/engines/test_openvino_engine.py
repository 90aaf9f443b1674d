"""OpenVINO engines of every precision: open, close to PyTorch, and refused where they can't be built."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from cmt_engine.engine import Build, EngineError, EngineSidecar, Precision, open_engine, sha256_of
from cmt_engine.openvino_engine import OPENVINO
from cmt_export.checkpoint import Checkpoint
from cmt_export.families.whisper import LogMel
from cmt_export.parity import references, stage_inputs, stage_parity
from cmt_export.samples import Batch
from cmt_pipeline.stages import COMPILED_STAGES, STAGES
from cmt_pipeline.tensors import Array
from cmt_release.release import Release
from small_graphs import small_graph, small_inputs

VERSION = openvino.__version__.split("-")[0]


def weights_of(onnx: Path) -> tuple[Path, Path]:
    return onnx, onnx.with_name(f"{onnx.name}.data")


@pytest.mark.long
@pytest.mark.parametrize("stage", COMPILED_STAGES, ids=lambda stage: stage.name)
def test_fp32_answers_as_pytorch_does(
    stage: Any, release_of: Callable[[Precision], Release], checkpoint: Checkpoint, compared: Sequence[Batch]
) -> None:
    engine = open_engine(release_of("fp32").stage_folder(stage.name), threads=1)
    row = stage_parity(engine, OPENVINO, stage, "fp32", references(checkpoint.model, stage, compared[:3]))
    assert (row.what, row.engine, row.precision, row.cases) == (stage.name, "openvino", "fp32", 3)
    assert row.passed, row


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage_name", "precision"),
    [("encode_image", "bf16"), ("encode_audio", "bf16"), ("encode_image", "int8"), ("encode_text", "int8")],
)
def test_narrow_precisions_stay_within_their_tolerance(
    stage_name: str,
    precision: Precision,
    graphs: Mapping[str, Path],
    checkpoint: Checkpoint,
    compared: Sequence[Batch],
    tmp_path: Path,
) -> None:
    stage = STAGES[stage_name]
    calibration = list(stage_inputs(checkpoint.model, stage, compared[3:]))
    sidecar = OPENVINO.build(Build(graphs[stage_name], stage, tmp_path, precision, lambda: calibration))
    expected = references(checkpoint.model, stage, compared[:3])
    row = stage_parity(open_engine(tmp_path, 1), OPENVINO, stage, precision, expected)
    assert row.passed, row
    assert row.tolerance == OPENVINO.tolerances[precision].relative
    assert sidecar.precision == precision
    assert sidecar.versions.keys() == ({"openvino", "nncf"} if precision == "int8" else {"openvino"})
    assert ("FakeQuantize" in (tmp_path / "model.xml").read_text()) == (precision == "int8")


def test_a_spectrum_is_computed_in_fp32_whatever_the_rest_is_in(tmp_path: Path) -> None:
    """In bf16 a tone of -60 dB beside a loud one drowns in what rounds the sound and the waves that it is read by."""
    log_mel, seconds = LogMel(80).eval(), np.arange(16_000) / 16_000
    sound = (np.sin(2 * np.pi * 440 * seconds) + 1e-3 * np.sin(2 * np.pi * 5000 * seconds)).astype(np.float32)[None]
    inputs = {"input_values": sound, "num_samples": np.array([[16_000]])}
    tensors = tuple(map(torch.from_numpy, inputs.values()))
    torch.onnx.export(log_mel, tensors, tmp_path / "mel.onnx", input_names=[*inputs], dynamo=True, verbose=False)
    OPENVINO.build(Build(tmp_path / "mel.onnx", STAGES["encode_audio"], tmp_path / "built", "bf16"))
    (found,) = open_engine(tmp_path / "built", 1).run(inputs).values()
    np.testing.assert_allclose(found, log_mel(*tensors), atol=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(found, log_mel(*tensors), atol=0.01)


def is_product(node: openvino.Node) -> bool:
    return bool(node.get_type_name() == "MatMul")


def int8_weights_of(product: openvino.Node) -> Array | None:
    """What lies before a product's second input, beyond scales and conversions; None where that isn't int8."""
    node = product.input_value(1).get_node()
    while node.get_type_name() != "Constant" and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.data if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8 else None


@pytest.mark.long
@pytest.mark.parametrize(("narrow", "most"), [(False, 127), (True, 64)])
def test_int8_weights_leave_the_sums_room(
    narrow: bool, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors that add up pairs of products in 16 bits; these refuse what was built for others."""
    monkeypatch.setattr("cmt_engine.openvino_engine.sums_int8_in_16_bits", lambda: narrow)
    rng = np.random.default_rng(0)
    calibration = [
        {"input_ids": rng.integers(1, 100, (1, 16)), "attention_mask": np.ones((1, 16), np.int64)} for _ in range(3)
    ]
    build = Build(small_graph("encode_text"), STAGES["encode_text"], tmp_path, "int8", lambda: calibration)
    target = OPENVINO.build(build).target
    products = [n for n in openvino.Core().read_model(tmp_path / "model.xml").get_ordered_ops() if is_product(n)]
    weights = [found for found in map(int8_weights_of, products) if found is not None]
    assert weights
    assert most - 2 <= max(int(abs(array.astype(int)).max()) for array in weights) <= most
    assert OPENVINO.misfits({}, target) == []
    assert ("--engine onnxruntime" in (OPENVINO.faster_here("int8") or "")) == narrow
    assert OPENVINO.faster_here("bf16") is None
    monkeypatch.setattr("cmt_engine.openvino_engine.sums_int8_in_16_bits", lambda: True)
    assert [reason.split(":")[0] for reason in OPENVINO.misfits({}, target)] == (
        []
        if narrow
        else [
            "its int8 weights are for processors that add up products in 32 bits (VNNI, AMX); this one has 16, which "
            "saturate, so that answers would be wrong"
        ]
    )
    assert OPENVINO.misfits({}, {"device": "CPU"}) == [], "other precisions are served everywhere"


@pytest.mark.long
def test_int8_leaves_the_fusion_in_bf16(tmp_path: Path) -> None:
    """It is a few hundredths of the work; the sidecar says what was really done."""
    sidecar = OPENVINO.build(Build(small_graph("fuse"), STAGES["fuse"], tmp_path, "int8"))
    assert sidecar.precision == "bf16"
    assert EngineSidecar.read(tmp_path) == sidecar
    assert "FakeQuantize" not in (tmp_path / "model.xml").read_text()


@pytest.fixture(scope="module")
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode_text")
    OPENVINO.build(Build(small_graph("encode_text"), STAGES["encode_text"], folder, "fp32"))
    return folder


@pytest.mark.long
def test_the_sidecar_says_how_it_came_to_be(small_engine: Path) -> None:
    assert sorted(path.name for path in small_engine.iterdir()) == ["engine.json", "model.bin", "model.xml"]
    assert EngineSidecar.read(small_engine) == EngineSidecar(
        stage="encode_text",
        engine="openvino",
        precision="fp32",
        model="model.xml",
        onnx_sha256=sha256_of(*weights_of(small_graph("encode_text"))),
        versions={"openvino": VERSION},
        target={"device": "CPU"},
    )


@pytest.mark.long
def test_the_same_graph_makes_the_same_files(small_engine: Path, tmp_path: Path) -> None:
    """Releases share what is equal; OpenVINO's own names of nodes go on counting from one model to the next."""
    OPENVINO.build(Build(small_graph("encode_text"), STAGES["encode_text"], tmp_path, "fp32"))
    for path in small_engine.iterdir():
        assert sha256_of(tmp_path / path.name) == sha256_of(path), path.name


@pytest.mark.long
def test_int8_without_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="int8 needs calibration inputs for encode_text; got none"):
        OPENVINO.build(Build(small_graph("encode_text"), STAGES["encode_text"], tmp_path, "int8"))
    assert list(tmp_path.iterdir()) == []


def test_a_precision_it_doesnt_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision: got 'fp16'; openvino takes fp32, bf16, int8"):
        OPENVINO.build(Build(small_graph("encode_text"), STAGES["encode_text"], tmp_path, "fp16"))
    assert list(tmp_path.iterdir()) == []


def test_answers_dont_change_when_the_engine_runs_again(small_engine: Path) -> None:
    """Its request's own memory is overwritten by the next run; what was handed out is not."""
    stage = STAGES["encode_text"]
    engine, inputs = open_engine(small_engine, 1), small_inputs(stage)
    first = engine.run(inputs)
    kept = {name: array.copy() for name, array in first.items()}
    other = engine.run(inputs | {"input_ids": inputs["input_ids"][::-1]})
    assert list(first) == [spec.name for spec in stage.outputs]
    assert not np.array_equal(other["text_features"], kept["text_features"])
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)


def test_inputs_need_not_be_contiguous(small_engine: Path) -> None:
    engine, inputs = open_engine(small_engine, 1), small_inputs(STAGES["encode_text"])
    wanted = engine.run(inputs)["text_features"]
    strided = {name: np.asfortranarray(array) for name, array in inputs.items()}
    np.testing.assert_array_equal(engine.run(strided)["text_features"], wanted)


@pytest.mark.parametrize("damage", ["model.xml", "model.bin", "engine.json"])
def test_a_damaged_engine_doesnt_open(damage: str, small_engine: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_engine, tmp_path / "damaged")
    (folder / damage).write_bytes(b"{}")
    with pytest.raises(EngineError, match=f"{folder} doesn't open as an engine: "):
        open_engine(folder)
    (folder / damage).unlink()
    with pytest.raises(EngineError, match=f"{folder} doesn't open as an engine: "):
        open_engine(folder)
