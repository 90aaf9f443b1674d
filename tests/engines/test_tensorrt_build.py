"""TensorRT engines, really built: with TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from cmt_engine.engine import EngineError, EngineSidecar, sha256_of
from cmt_engine.gpu import Gpu
from cmt_engine.tensorrt_build import (
    PORTABLE,
    TYPICAL_BATCH,
    TensorRtOptions,
    engine_from_onnx,
    engine_key,
    key_of,
    profile_of,
)
from cmt_engine.tensorrt_contract import inspect_engine
from cmt_engine.typed_onnx import onnx_files
from cmt_pipeline.limits import MAX_GPU_BATCH_SIZE
from cmt_pipeline.stages import COMPILED_STAGES, STAGES, sized
from cmt_pipeline.tensors import DEFAULT_SIZES
from small_graphs import needs_rtx, small_graph, text_graph

SIZED = {name: sized(stage, DEFAULT_SIZES) for name, stage in STAGES.items()}
RTX = TensorRtOptions(flavour="tensorrt_rtx")


def no_gpus() -> tuple[Gpu, ...]:
    return ()


def options(**changes: Any) -> TensorRtOptions:
    return dataclasses.replace(RTX, **changes)


def dims_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    report = inspect_engine(folder, no_gpus)
    return {tensor.name: (tensor.dtype, tensor.dims) for tensor in report.tensors}


@pytest.fixture(scope="module")
def text_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode_text")
    engine_from_onnx(small_graph("encode_text"), SIZED["encode_text"], folder, RTX)
    return folder


def test_profiles_span_the_buckets() -> None:
    for stage in COMPILED_STAGES:
        profile = profile_of(stage, 16)
        assert list(profile) == [spec.name for spec in stage.inputs]
        for spec in SIZED[stage.name].inputs:
            shapes = profile[spec.name]
            assert [shapes[kind][0] for kind in ("min", "opt", "max")] == [1, TYPICAL_BATCH, 16]
            for index, axis in enumerate(spec.axes, 1):
                assert (shapes["min"][index], shapes["max"][index]) == (axis.sizes[0], axis.sizes[-1])
                assert shapes["opt"][index] in axis.sizes


def test_profiles_are_tuned_for_typical_lengths() -> None:
    assert profile_of(SIZED["encode_audio"])["input_values"]["opt"] == [4, 64_080]
    fuse = profile_of(SIZED["fuse"])
    assert [fuse[f"{m}_mask"]["opt"] for m in ("image", "audio", "text")] == [[4, 197], [4, 200], [4, 64]]
    assert fuse["audio_features"] == {"min": [1, 1, 256], "opt": [4, 200, 256], "max": [32, 800, 256]}
    assert profile_of(SIZED["fuse"], 1)["text_mask"]["opt"] == [1, 64]


@pytest.mark.long
@needs_rtx
@pytest.mark.parametrize(
    ("stage_name", "precision"),
    [
        ("encode_text", "fp32"),
        ("encode_text", "bf16"),
        ("encode_audio", "fp32"),
        ("encode_audio", "fp16"),
        ("encode_audio", "bf16"),
        ("fuse", "fp32"),
        ("fuse", "fp16"),
        ("fuse", "bf16"),
    ],
)
def test_builds_and_keeps_the_contract(stage_name: str, precision: Any, tmp_path: Path) -> None:
    stage, source = SIZED[stage_name], small_graph(stage_name)
    sidecar = engine_from_onnx(source, stage, tmp_path, options(precision=precision))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.json", "model.plan"]
    found = dims_of(tmp_path)
    assert set(found) == {spec.name for spec in (*stage.inputs, *stage.outputs)}
    for spec in (*stage.inputs, *stage.outputs):
        dtype, dims = found[spec.name]
        labels = [7] if spec.name in ("logits", "probabilities") else list(spec.dims)
        assert (dtype, dims) == (spec.dtype, (-1, *labels))
    assert EngineSidecar.read(tmp_path) == sidecar
    assert (sidecar.stage, sidecar.engine, sidecar.precision) == (stage_name, "tensorrt", precision)


@pytest.mark.long
@needs_rtx
def test_the_sidecar_says_how_it_came_to_be(text_engine: Path) -> None:
    import tensorrt_rtx

    sidecar = EngineSidecar.read(text_engine)
    assert sidecar.onnx_sha256 == sha256_of(*onnx_files(small_graph("encode_text")))
    assert sidecar.versions == {"tensorrt_rtx": tensorrt_rtx.__version__}
    assert sidecar.target == {"compute_capabilities": ", ".join(PORTABLE)}
    assert sidecar.profile == profile_of(SIZED["encode_text"], MAX_GPU_BATCH_SIZE)
    report = inspect_engine(text_engine, no_gpus)
    assert (report.read_from, report.version) == ("plan", tensorrt_rtx.__version__)


@needs_rtx
def test_narrow_plans_are_half_as_large(tmp_path: Path) -> None:
    """The embedding of a graph with a large vocabulary is nearly all of its plan."""
    rows, width = 20_000, 256
    weights = helper.make_tensor("table", TensorProto.FLOAT, [rows, width], b"\0" * (rows * width * 4), raw=True)
    source = text_graph([helper.make_node("Gather", ["table", "input_ids"], ["text_features"])], [weights])
    onnx.save(source, tmp_path / "source.onnx")
    sizes = []
    for precision in ("fp32", "fp16"):
        engine_from_onnx(
            tmp_path / "source.onnx",
            SIZED["encode_text"],
            tmp_path / precision,
            options(precision=precision),
        )
        sizes.append(inspect_engine(tmp_path / precision, no_gpus).size_bytes)
    assert 0.45 < sizes[1] / sizes[0] < 0.6


@pytest.mark.long
@needs_rtx
def test_progress_rises_to_one(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    engine_from_onnx(small_graph("fuse"), SIZED["fuse"], tmp_path, RTX, lambda phase, part: told.append((phase, part)))
    parts = [part for _, part in told]
    assert parts == sorted(parts)
    assert told[-1] == ("Built", 1.0)
    assert len({phase for phase, _ in told}) > 5


@pytest.mark.long
@needs_rtx
def test_an_interrupt_stops_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(phase: str, part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(small_graph("fuse"), SIZED["fuse"], tmp_path, RTX, interrupt)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_a_graph_of_another_stage_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        engine_from_onnx(small_graph("encode_text"), SIZED["encode_audio"], tmp_path, RTX)
    for part in (
        "input input_values FP32 [batch, samples] is missing",
        "input num_samples INT64 [batch, item=1] is missing",
        "input input_ids INT64 [-1, -1] is not in the contract",
        "output audio_features FP32 [batch, audio_tokens, model=256] is missing",
    ):
        assert part in str(caught.value)


@needs_rtx
def test_wrong_types_and_sizes_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["attention_mask"], ["text_features"], to=TensorProto.FLOAT)]
    onnx.save(text_graph(nodes, [], ids_type=TensorProto.INT32), tmp_path / "source.onnx")
    with pytest.raises(EngineError) as caught:
        engine_from_onnx(tmp_path / "source.onnx", SIZED["encode_text"], tmp_path, RTX)
    assert "input input_ids INT64 [batch, tokens] expected, got input_ids INT32 [-1, -1]" in str(caught.value)
    assert "output text_features FP32 [batch, text_tokens, model=256] expected, got text_features FP32 [-1, -1]" in str(
        caught.value
    )


@needs_rtx
def test_every_operator_that_doesnt_fit_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unique", ["input_ids"], ["unique"], name="first"),
        helper.make_node("Det", ["features"], ["det"], name="second"),
        helper.make_node("Cast", ["attention_mask"], ["text_features"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["features"], to=TensorProto.FLOAT),
    ]
    onnx.save(text_graph([nodes[3], *nodes[:3]], []), tmp_path / "source.onnx")
    with pytest.raises(EngineError, match=r"2 of its nodes or axes: Unique first: .*; Det second: "):
        engine_from_onnx(tmp_path / "source.onnx", SIZED["encode_text"], tmp_path, options(precision="fp32"))


@needs_rtx
def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    """An operator that it has, of which it wants sizes that don't vary."""
    nodes = [
        helper.make_node("EyeLike", ["attention_mask"], ["eye"], name="first"),
        helper.make_node("Cast", ["eye"], ["text_features"], to=TensorProto.FLOAT),
    ]
    onnx.save(text_graph(nodes, []), tmp_path / "source.onnx")
    with pytest.raises(EngineError, match=r"can't parse .*, 1 of its nodes: EyeLike first: "):
        engine_from_onnx(tmp_path / "source.onnx", SIZED["encode_text"], tmp_path, options(precision="fp32"))


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_no_onnx_is_refused(precision: Any, tmp_path: Path) -> None:
    (tmp_path / "source.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(EngineError, match=r"source\.onnx"):
        engine_from_onnx(tmp_path / "source.onnx", SIZED["encode_text"], tmp_path, options(precision=precision))


@needs_rtx
def test_targets_are_compiled_for(tmp_path: Path) -> None:
    targets = ("8.6", "12.0")
    stage = SIZED["encode_text"]
    sidecar = engine_from_onnx(small_graph("encode_text"), stage, tmp_path, options(compute_capabilities=targets))
    assert sidecar.target == {"compute_capabilities": "8.6, 12.0"}
    assert b"accelerators={sm86 sm120 }" in (tmp_path / "model.plan").read_bytes()


@needs_rtx
def test_a_target_that_isnt_there_is_refused(tmp_path: Path) -> None:
    """Hopper (9.0) is none of TensorRT for RTX."""
    with pytest.raises(EngineError, match=r"got compute capability 9\.0; .* takes 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"):
        engine_from_onnx(small_graph("fuse"), SIZED["fuse"], tmp_path, options(compute_capabilities=("9.0",)))


@needs_rtx
def test_a_failed_build_says_why(tmp_path: Path) -> None:
    turing_fp32 = options(compute_capabilities=("7.5",), precision="fp32")
    with pytest.raises(EngineError, match=r"couldn't build fuse: .*FP32 GEMM is not supported"):
        engine_from_onnx(small_graph("fuse"), SIZED["fuse"], tmp_path, turing_fp32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "got precision int8; TensorRT takes fp32, fp16, bf16"),
        ({"optimisation_level": 9}, "got optimisation level 9"),
        ({"max_batch": 0}, "got max_batch 0"),
    ],
)
def test_options_that_dont_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        engine_from_onnx(tmp_path / "none.onnx", SIZED["fuse"], tmp_path, options(**change))


@needs_rtx
def test_options_reach_the_builder(tmp_path: Path) -> None:
    changed = options(workspace_bytes=1 << 28, optimisation_level=1, tf32=True, max_batch=2)
    sidecar = engine_from_onnx(small_graph("encode_text"), SIZED["encode_text"], tmp_path, changed)
    assert sidecar.profile["input_ids"] == {"min": [1, 16], "opt": [2, 64], "max": [2, 128]}


def test_a_key_changes_with_everything_that_makes_an_engine() -> None:
    base = ("ab" * 32, "fp16", "tensorrt 10.13.3.9", "NVIDIA L4 8.9", {"max_batch": 32})
    keys = {engine_key(*base)}  # type: ignore[arg-type]
    for index, other in enumerate(("cd" * 32, "bf16", "tensorrt 11.0.0.1", "NVIDIA A100 8.0", {"max_batch": 8})):
        keys.add(engine_key(*(other if i == index else part for i, part in enumerate(base))))  # type: ignore[arg-type]
    assert len(keys) == 6
    assert engine_key(*base) in keys  # type: ignore[arg-type]


@needs_rtx
def test_a_key_is_known_before_the_build() -> None:
    graph, stage = small_graph("fuse"), SIZED["fuse"]
    keys = [key_of(graph, stage, RTX), key_of(graph, stage, options(timing_cache=Path("elsewhere")))]
    assert keys[0] == keys[1]
    changes: list[dict[str, Any]] = [
        {"max_batch": 2},
        {"precision": "bf16"},
        {"compute_capabilities": ("8.9",)},
    ]
    assert len({keys[0], *(key_of(graph, stage, options(**change)) for change in changes)}) == 4
