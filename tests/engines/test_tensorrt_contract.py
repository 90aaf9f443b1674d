"""Engines read back without a GPU, from plans that TensorRT for RTX really built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cmt_engine.engine import EngineError, EngineSidecar
from cmt_engine.gpu import Gpu
from cmt_engine.plan_file import DATA_TYPES, read_plan
from cmt_engine.tensorrt_build import TensorRtOptions, engine_from_onnx
from cmt_engine.tensorrt_contract import DTYPE_NAMES, inspect_engine
from cmt_pipeline.stages import STAGES
from small_graphs import needs_rtx, small_graph


def no_gpus() -> tuple[Gpu, ...]:
    return ()


@pytest.fixture(scope="module")
def text_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode_text")
    options = TensorRtOptions(flavour="tensorrt_rtx")
    engine_from_onnx(small_graph("encode_text"), STAGES["encode_text"], folder, options)
    return folder


@needs_rtx
def test_a_damaged_plan_is_told(text_engine: Path, tmp_path: Path) -> None:
    plan = (text_engine / "model.plan").read_bytes()
    sidecar = EngineSidecar.read(text_engine)
    sidecar.write(tmp_path)
    for damaged, message in (
        (plan[:-1], r"has \d+ bytes; its header says \d+"),
        (b"", "a TensorRT plan opens with"),
        (b"x" + plan[1:], "a TensorRT plan opens with"),
        (plan.replace(b"text_mask", b"test_mask"), "output text_mask .* is missing; .*test_mask"),
    ):
        (tmp_path / "model.plan").write_bytes(damaged)
        with pytest.raises(EngineError, match=message):
            inspect_engine(tmp_path, no_gpus)
    (tmp_path / "model.plan").unlink()
    with pytest.raises(EngineError, match=r"No such file.*Build the engine again"):
        inspect_engine(tmp_path, no_gpus)


@needs_rtx
def test_a_plan_of_another_version_is_told(text_engine: Path, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes((text_engine / "model.plan").read_bytes())
    sidecar = EngineSidecar.read(text_engine)
    dataclasses.replace(sidecar, versions={"tensorrt_rtx": "1.8.0.1"}).write(tmp_path)
    with pytest.raises(EngineError, match=r"engine.json says tensorrt_rtx 1\.8\.0\.1"):
        inspect_engine(tmp_path, no_gpus)


@needs_rtx
def test_a_table_that_isnt_recognised_is_not_guessed(text_engine: Path, tmp_path: Path) -> None:
    plan = (text_engine / "model.plan").read_bytes()
    (tmp_path / "model.plan").write_bytes(plan.replace(b"\x1c\x80\x01\x00", b"\x1d\x80\x01\x00"))
    EngineSidecar.read(text_engine).write(tmp_path)
    report = inspect_engine(tmp_path, no_gpus)
    assert (report.read_from, report.tensors) == ("header", ())


@needs_rtx
def test_an_engine_for_another_gpu_isnt_opened(text_engine: Path) -> None:
    assert inspect_engine(text_engine, lambda: (Gpu("NVIDIA H100", "9.0"),)).read_from == "plan"


@needs_rtx
def test_type_names_are_those_of_the_module() -> None:
    import tensorrt_rtx

    for value, name in DATA_TYPES.items():
        member = tensorrt_rtx.DataType(value).name
        assert DTYPE_NAMES.get(member, member) == name


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"#!/bin/sh" + b"\0" * 100)
    with pytest.raises(ValueError, match=r"opens with b'#!/b'"):
        read_plan(tmp_path / "model.plan")
