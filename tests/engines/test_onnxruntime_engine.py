"""The ONNX Runtime engine runs the exported graph as it is, or with its products in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from cmt_engine.engine import (
    ENGINES,
    Build,
    EngineError,
    EngineSidecar,
    Precision,
    open_engine,
    sha256_of,
)
from cmt_engine.onnxruntime_engine import ONNXRUNTIME
from cmt_export.checkpoint import Checkpoint
from cmt_export.parity import references, stage_parity
from cmt_export.samples import Batch
from cmt_pipeline.stages import STAGES
from small_graphs import small_graph, small_inputs


def test_it_answers_as_pytorch_does(
    graphs: Mapping[str, Path], checkpoint: Checkpoint, compared: Sequence[Batch], tmp_path: Path
) -> None:
    stage = STAGES["encode_image"]
    sidecar = ONNXRUNTIME.build(Build(graphs[stage.name], stage, tmp_path, "fp32"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.json", "model.onnx", "model.onnx.data"]
    assert EngineSidecar.read(tmp_path) == sidecar
    assert (sidecar.engine, sidecar.precision, sidecar.model) == ("onnxruntime", "fp32", "model.onnx")
    assert sidecar.onnx_sha256 == sha256_of(tmp_path / "model.onnx", tmp_path / "model.onnx.data")
    assert sidecar.versions == {"onnxruntime": onnxruntime.__version__}
    expected = references(checkpoint.model, stage, compared[:2])
    assert stage_parity(open_engine(tmp_path, 1), ONNXRUNTIME, stage, "fp32", expected).passed


@pytest.mark.long
@pytest.mark.parametrize("stage_name", ["encode_image", "encode_audio", "encode_text", "fuse"])
def test_int8_stays_within_its_tolerance(
    stage_name: str, graphs: Mapping[str, Path], checkpoint: Checkpoint, compared: Sequence[Batch], tmp_path: Path
) -> None:
    """Of trained weights, MiniLM's among them; the fusion stays as it is, and says so."""
    stage = STAGES[stage_name]
    sidecar = ONNXRUNTIME.build(Build(graphs[stage_name], stage, tmp_path, "int8"))
    assert EngineSidecar.read(tmp_path) == sidecar
    expected = references(checkpoint.model, stage, compared[:3])
    row = stage_parity(open_engine(tmp_path, 1), ONNXRUNTIME, stage, sidecar.precision, expected)
    assert row.passed, row
    if stage_name == "fuse":
        assert (sidecar.precision, row.tolerance) == ("fp32", 1e-4)
    else:
        assert (sidecar.precision, row.tolerance) == ("int8", 0.1)
        assert row.error > 1e-3, "nothing was quantised"


@pytest.mark.long
@pytest.mark.parametrize(
    ("narrow", "stored"), [(False, onnx.TensorProto.INT8), (True, onnx.TensorProto.UINT8)], ids=["VNNI", "AVX2 alone"]
)
def test_int8_weights_suit_the_processor(
    narrow: bool, stored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that adds up products in 16 bits refuses what was built for others."""
    monkeypatch.setattr("cmt_engine.onnxruntime_engine.sums_int8_in_16_bits", lambda: narrow)
    targets = [
        ONNXRUNTIME.build(Build(small_graph(name), STAGES[name], tmp_path / name, "int8")).target
        for name in ("encode_text", "fuse")
    ]
    assert targets[0] == targets[1], "a release is held against this machine by its fusion's"
    graph = onnx.load(tmp_path / "encode_text" / "model.onnx").graph
    products = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    assert products
    assert {weight.data_type for weight in graph.initializer if weight.name in products} == {stored}
    assert ONNXRUNTIME.misfits({}, targets[0]) == []
    monkeypatch.setattr("cmt_engine.onnxruntime_engine.sums_int8_in_16_bits", lambda: True)
    assert [reason.partition(",")[0] for reason in ONNXRUNTIME.misfits({}, targets[0])] == (
        [] if narrow else ["its int8 weights are signed"]
    )
    assert ONNXRUNTIME.misfits({}, {"device": "CPU"}) == [], "fp32 is served everywhere"


@pytest.mark.long
def test_the_same_graph_makes_the_same_int8(tmp_path: Path) -> None:
    """Releases share what is equal."""
    for folder in ("one", "two"):
        ONNXRUNTIME.build(Build(small_graph("encode_text"), STAGES["encode_text"], tmp_path / folder, "int8"))
    for path in (tmp_path / "one").iterdir():
        assert sha256_of(tmp_path / "two" / path.name) == sha256_of(path), path.name


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_that_it_doesnt_run_are_refused(precision: Precision, tmp_path: Path) -> None:
    """Else the sidecar would claim what isn't so."""
    with pytest.raises(ValueError, match=f"precision: got '{precision}'; onnxruntime takes fp32, int8"):
        ONNXRUNTIME.build(Build(small_graph("fuse"), STAGES["fuse"], tmp_path, precision))
    assert list(tmp_path.iterdir()) == []


def test_inputs_need_not_be_contiguous(tmp_path: Path) -> None:
    stage = STAGES["encode_text"]
    ONNXRUNTIME.build(Build(small_graph(stage.name), stage, tmp_path, "fp32"))
    engine, inputs = open_engine(tmp_path, 1), small_inputs(stage)
    wanted = engine.run(inputs)
    strided = engine.run({name: np.asfortranarray(array) for name, array in inputs.items()})
    assert list(wanted) == [spec.name for spec in stage.outputs]
    np.testing.assert_array_equal(strided["text_features"], wanted["text_features"])


@pytest.mark.parametrize("damage", ["model.onnx", "model.onnx.data", "engine.json"])
def test_a_damaged_engine_doesnt_open(damage: str, tmp_path: Path) -> None:
    ONNXRUNTIME.build(Build(small_graph("fuse"), STAGES["fuse"], tmp_path, "fp32"))
    (tmp_path / damage).write_bytes(b"{}")
    with pytest.raises(EngineError, match=f"{tmp_path} doesn't open as an engine: "):
        open_engine(tmp_path)


def test_every_engine_says_what_it_is() -> None:
    assert tuple(ENGINES) == ("openvino", "tensorrt", "onnxruntime", "aotinductor", "aotinductor_cuda")
    for name, engine in ENGINES.items():
        assert engine.name == name
        assert "fp32" in engine.tolerances
        assert engine.runtime is None or engine.runtime in engine.packages
    with pytest.raises(ValueError, match="engine: got 'tvm'; expected one of openvino, tensorrt, onnxruntime"):
        ENGINES["tvm"]


def test_a_digest_is_of_all_files_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"a" * (1 << 20) + b"b")
    second.write_bytes(b"c")
    assert sha256_of(first, second) != sha256_of(second, first) != sha256_of(first)
    assert sha256_of(second) == "2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6"
