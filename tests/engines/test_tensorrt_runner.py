"""A plan's way to the GPU, as far as it goes without one: on real plans and TensorRT for RTX's own runtime.

What runs a plan is unverified where no GPU is: the last test runs it where TensorRT and a GPU are.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt_engine import tensorrt_contract, tensorrt_runner
from cmt_engine.engine import ENGINES, Build, EngineError, EngineSidecar, open_engine
from cmt_engine.plan_file import HEADER, RTX_TAG, TENSORRT_TAG
from cmt_engine.tensorrt_build import TensorRtOptions, engine_from_onnx, profile_of
from cmt_engine.tensorrt_contract import deserialised
from cmt_engine.tensorrt_module import load_tensorrt
from cmt_engine.tensorrt_runner import checked, no_cuda
from cmt_pipeline.stages import STAGES, sized
from cmt_pipeline.tensors import DEFAULT_SIZES
from small_graphs import needs_rtx, small_graph

TEXT = STAGES["encode_text"]
PROFILE = profile_of(TEXT)

without_gpu = pytest.mark.skipif(no_cuda() is None, reason="a GPU is here, which opens plans")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode_text")
    engine_from_onnx(small_graph("encode_text"), TEXT, folder, TensorRtOptions(flavour="tensorrt_rtx"))
    return folder


@pytest.fixture
def folder(plan: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    for file in plan.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def words(batch: int = 2, tokens: int = 16, dtype: Any = np.int64) -> dict[str, Any]:
    return {name: np.ones((batch, tokens), dtype) for name in ("input_ids", "attention_mask")}


@needs_rtx
@without_gpu
def test_without_a_gpu_a_plan_says_what_it_needs(plan: Path) -> None:
    version = load_tensorrt("tensorrt_rtx").version
    with pytest.raises(EngineError, match=rf"a plan of tensorrt_rtx {version}, which runs on a GPU: (torch|CUDA) "):
        open_engine(plan)
    assert not ENGINES["tensorrt"].opens_here()
    assert ENGINES["tensorrt"].closed_here() == no_cuda()


@without_gpu
def test_a_plan_of_tensorrt_is_left_to_triton(tmp_path: Path) -> None:
    EngineSidecar("fuse", "tensorrt", "fp16", "model.plan", "ab", {"tensorrt": "10.13.3.9"}).write(tmp_path)
    (tmp_path / "model.plan").write_bytes(HEADER.pack(TENSORRT_TAG, 0, HEADER.size, 10, 13, 3, 9))
    said = (
        r"plan of tensorrt 10\.13\.3\.9, which runs on a GPU: .*; Triton's own backend serves it \(--model-config-name"
    )
    with pytest.raises(EngineError, match=said):
        open_engine(tmp_path)


@needs_rtx
@pytest.mark.parametrize("versions", [{"tensorrt": "10.13.3.9"}, {"tensorrt_rtx": "1.6.0.1"}])
def test_another_flavour_or_version_than_the_sidecars_is_refused(folder: Path, versions: dict[str, str]) -> None:
    dataclasses.replace(EngineSidecar.read(folder), versions=versions).write(folder)
    ((name, version),) = versions.items()
    with pytest.raises(EngineError, match=rf"made by tensorrt_rtx 1\.7\..*; engine\.json says {name} {version}"):
        open_engine(folder)


@needs_rtx
def test_a_plan_that_breaks_the_contract_is_refused(folder: Path) -> None:
    path = folder / "model.plan"
    path.write_bytes(path.read_bytes().replace(b"text_mask", b"test_mask"))
    with pytest.raises(EngineError, match=r"output text_mask .* is missing; .*test_mask"):
        open_engine(folder)


@needs_rtx
@without_gpu
def test_the_runtime_itself_refuses_the_other_flavour(folder: Path) -> None:
    """Its own plan it would take, and fails for want of a driver; one of TensorRT it doesn't look at any further."""
    path, rtx = folder / "model.plan", load_tensorrt("tensorrt_rtx")
    with pytest.raises(EngineError, match=r"(?i)cuda"):
        deserialised(rtx, path)
    path.write_bytes(path.read_bytes().replace(RTX_TAG, TENSORRT_TAG, 1))
    with pytest.raises(EngineError, match=r"incompatible serialization version \(1953657958 != 1953657974\)"):
        deserialised(rtx, path)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (words(batch=33), r"got input_ids of int64 \[33, 16\]; expected INT64 from \[1, 16\] to \[32, 128\]"),
        (words(batch=0), r"got input_ids of int64 \[0, 16\]"),
        (words(tokens=129), r"\[2, 129\]"),
        (words(tokens=15), r"\[2, 15\]"),
        (words(dtype=np.int32), "got input_ids of int32"),
        ({"input_ids": np.ones((2, 16, 1), np.int64)}, r"\[2, 16, 1\]"),
        ({"input_ids": np.ones((2, 16), np.int64)}, "got input_ids; expected attention_mask INT64"),
        ({}, "got no input; expected input_ids"),
    ],
)
def test_inputs_outside_the_profile_are_refused(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        checked(inputs, TEXT, PROFILE)


def test_inputs_of_any_shape_of_the_profile_are_taken_in_the_contracts_order() -> None:
    given = {name: array.T for name, array in reversed(words(batch=128, tokens=2).items())} | {"more": np.ones(1)}
    taken = checked(given, TEXT, {name: {"min": [1, 16], "max": [32, 128]} for name in PROFILE})
    assert list(taken) == [spec.name for spec in TEXT.inputs]
    assert all(array.shape == (2, 128) and array.flags.c_contiguous for array in taken.values())


def asked_of(module: Any, names: set[str]) -> Iterator[str]:
    """What the source of a module asks of objects by these names."""
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2].lstrip("_") in names:
            yield node.attr


@needs_rtx
def test_what_is_asked_of_tensorrt_is_in_its_api() -> None:
    import tensorrt_rtx

    for name, of in (("engine", tensorrt_rtx.ICudaEngine), ("context", tensorrt_rtx.IExecutionContext)):
        asked = {*asked_of(tensorrt_runner, {name}), *asked_of(tensorrt_contract, {name})}
        assert len(asked) > 4
        assert [attribute for attribute in sorted(asked) if not hasattr(of, attribute)] == []
    assert hasattr(tensorrt_rtx.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(tensorrt_rtx.TensorIOMode, "INPUT")
    assert hasattr(tensorrt_rtx.TensorLocation, "HOST")


@pytest.mark.skipif(bool(no_cuda()), reason="no GPU is here")
@pytest.mark.parametrize("name", ["encode_text", "encode_audio", "fuse"])
def test_a_plan_answers_as_onnx_runtime_does_at_every_shape_and_again(name: str, tmp_path: Path) -> None:
    engine, stage = ENGINES["tensorrt"], sized(STAGES[name], DEFAULT_SIZES)
    if reason := engine.closed_here():
        pytest.skip(reason)
    engine.build(Build(small_graph(name), stage, tmp_path, "fp32"))
    runner, reference = open_engine(tmp_path), ENGINES["onnxruntime"].open(small_graph(name), "fp32", 0)
    rng = np.random.default_rng(0)
    for batch, longest in ((1, False), (2, True), (1, False), (3, False), (2, True)):
        inputs = {}
        for spec in stage.inputs:
            shape = (batch, *(axis.sizes[-1 if longest else 0] for axis in spec.axes))
            floats = spec.dtype == "FP32"
            inputs[spec.name] = rng.standard_normal(shape).astype("f4") if floats else np.ones(shape, np.int64)
            if spec.name == "num_samples":
                inputs[spec.name][:] = inputs["input_values"].shape[1]
        expected, got = reference.run(inputs), runner.run(inputs)
        for output in stage.outputs:
            np.testing.assert_allclose(got[output.name], expected[output.name], rtol=1e-3, atol=1e-4)
