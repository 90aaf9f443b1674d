"""Reading repositories: several folders, variants, and folders that somebody hostile wrote."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmt_engine.plan_file import HEADER, RTX_TAG, TENSORRT_TAG
from cmt_server.doctor.diagnosis import diagnose
from cmt_server.doctor.environment import NUMPY_2, PLAN_MISFIT, StubEnvironment, stub_environment, tensorrt_here
from cmt_server.doctor.finding import LONGEST_TEXT, printable
from cmt_server.doctor.graph import LONGEST_WAY, circular_ensembles
from cmt_server.doctor.repository import (
    MAX_CONFIG_BYTES,
    MAX_STEPS,
    Model,
    Repository,
    parse_config,
    read_repositories,
)
from tiny_triton import Step, ensemble, python_model, write_model

ROOT = Path(__file__).parents[3]
SAMPLE = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }'
WARMED = python_model(more=f'model_warmup {{ name: "w" batch_size: 1 {SAMPLE} }}')
ENSEMBLE = ensemble([Step("a", {"x": "x"}, {"y": "y"})])


def found(*folders: Path) -> list[tuple[str, str]]:
    return [(one.rule.id, one.model) for one in diagnose(folders).findings]


def test_our_own_repository_is_clean() -> None:
    diagnosis = diagnose([ROOT / "model_repository"], stub=stub_environment())
    assert diagnosis.findings == ()
    assert diagnosis.models == 20


def test_folders_form_one_repository(tmp_path: Path) -> None:
    write_model(tmp_path / "one", "a", WARMED)
    write_model(tmp_path / "two", "e", ENSEMBLE)
    assert found(tmp_path / "two") == [("step-unavailable", "e")]
    assert found(tmp_path / "two", tmp_path / "one") == []
    assert found(tmp_path / "two", tmp_path / "one", tmp_path / "one") == []


def test_parts_that_are_served_together_are_found(tmp_path: Path) -> None:
    """`stages`, `candidate` and a link named `pipelines`, as what is served here lies."""
    write_model(tmp_path / "stages", "a", WARMED)
    write_model(tmp_path / "set-1", "e", ENSEMBLE)
    (tmp_path / "candidate").mkdir()
    (tmp_path / "pipelines").symlink_to("set-1")
    assert found(tmp_path) == []
    assert diagnose([tmp_path]).models == 2


def test_a_model_in_two_folders(tmp_path: Path) -> None:
    for part in ("one", "two"):
        write_model(tmp_path / part, "a", WARMED)
    assert found(tmp_path / "one", tmp_path / "two") == [("model-in-two-folders", "a")]


def test_configurations_that_a_name_chooses_are_read_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "a", WARMED)
    (folder / "configs").mkdir()
    (folder / "configs" / "gpu.pbtxt").write_text(WARMED + " max_batch_size: 4")
    write_model(tmp_path, "e", ENSEMBLE)
    (one,) = diagnose([tmp_path]).findings
    assert (one.rule.id, one.where) == ("batch-without-batcher", str(folder / "configs" / "gpu.pbtxt"))


def test_a_model_without_a_configuration_may_be_a_step(tmp_path: Path) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    write_model(tmp_path, "e", ENSEMBLE)
    assert found(tmp_path) == []
    assert diagnose([tmp_path]).models == 1


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / ".git" / "refs").mkdir(parents=True)
    (tmp_path / "readme.md").touch()
    assert found(tmp_path) == [("not-a-model", ".git"), ("not-a-model", "notes")]


@pytest.mark.parametrize(
    ("folder", "version"),
    [("2.bak", "2"), ("2_old", "2"), ("1.0.3", None), ("+3", "3"), ("-1", "-1"), ("9" * 30, "9" * 30)],
)
def test_version_folders_that_triton_misreads(folder: str, version: str | None, tmp_path: Path) -> None:
    model = write_model(tmp_path, "a", WARMED)
    (model / folder).mkdir()
    told = [one.what for one in diagnose([tmp_path]).findings]
    assert told == ([f"folder {folder!r} is version {version} to Triton"] if version else [])


@pytest.mark.parametrize("folder", ["1.bak", "old", "01", "v2", "configs", ".git", "0.5"])
def test_folders_that_are_no_versions(folder: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, "a", WARMED)
    (model / folder).mkdir()
    assert found(tmp_path) == []
    (model / "1").rename(model / "latest")
    assert ("no-version", "a") in found(tmp_path)


@pytest.mark.parametrize(
    ("config", "files", "fires"),
    [
        ('backend: "python"', (), True),
        ('backend: "python"', (".gitkeep", "weights.pt"), True),
        ('backend: "python"', ("model.py",), False),
        ('backend: "python" default_model_filename: "main.py"', ("model.py",), True),
        ('backend: "python" default_model_filename: "main.py"', ("main.py",), False),
        ('platform: "onnxruntime_onnx"', (".gitkeep",), True),
        ('platform: "onnxruntime_onnx" default_model_filename: "best.onnx"', ("best.onnx",), False),
        ('platform: "tensorrt_plan" cc_model_filenames { key: "9.0" value: "h100.plan" }', ("h100.plan",), False),
        ('backend: "identity"', (), False),  # its own
        ("", (), False),
        ('platform: "ensemble"', (), False),
    ],
)
def test_versions_without_a_model(config: str, files: tuple[str, ...], fires: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "a" / "config.pbtxt").write_text(config)
    for file in files:
        (folder / file).touch()
    assert (("empty-version", "a") in found(tmp_path)) is fires


def test_a_model_of_variants_alone_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "a" / "configs").mkdir(parents=True)
    (tmp_path / "a" / "configs" / "gpu.pbtxt").write_text(WARMED)
    assert found(tmp_path) == []


@pytest.mark.parametrize(("artefact", "silent"), [("model.onnx", True), ("model.plan", True), ("model.pt", False)])
def test_the_backend_is_known_by_the_artefact(artefact: str, silent: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path, "a", "max_batch_size: 4", ())
    (folder / "1").mkdir()
    (folder / "1" / artefact).touch()
    assert (("batch-without-batcher", "a") not in found(tmp_path)) is silent


def test_a_missing_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the folder of a Triton model repository"):
        diagnose([tmp_path / "nowhere"])


def hostile(folder: Path) -> dict[str, Path]:
    """Model folders whose configurations can't be read, each in its own way."""
    folders = {
        name: folder / name for name in ("big", "binary", "pipe", "directory", "nested", "steps", "escape\x1b[2J")
    }
    for path in folders.values():
        (path / "1").mkdir(parents=True)
    (folders["big"] / "config.pbtxt").write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    (folders["binary"] / "config.pbtxt").write_bytes(bytes(range(256)))
    os.mkfifo(folders["pipe"] / "config.pbtxt")
    (folders["directory"] / "config.pbtxt").mkdir()
    (folders["nested"] / "config.pbtxt").write_text("input { " * 100_000)
    steps = 'step { model_name: "a" }' * (MAX_STEPS + 1)
    (folders["steps"] / "config.pbtxt").write_text(f'platform: "ensemble" ensemble_scheduling {{ {steps} }}')
    (folders["escape\x1b[2J"] / "config.pbtxt").write_text('name: "\\033[2J')
    return folders


def test_what_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    folders = hostile(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("no folder")
    _, findings = read_repositories([tmp_path])
    assert {one.rule.id for one in findings} == {"unreadable-config"}
    assert [one.model for one in findings] == sorted(printable(name) for name in folders)
    assert all(len(one.what) <= LONGEST_TEXT for one in findings)
    assert all(text.isprintable() for one in findings for text in (one.where, one.model, one.what))


def test_ensembles_in_circles_end(tmp_path: Path) -> None:
    write_model(tmp_path, "e", ensemble([Step("f", {"x": "x"}, {"y": "y"}), Step("f", {"x": "y"}, {"y": "x"})]))
    write_model(tmp_path, "f", ensemble([Step("e", {"x": "x"}, {"y": "y"})]))
    assert {("circular-ensembles", "e"), ("circular-ensembles", "f")} <= set(found(tmp_path))


@pytest.mark.long
def test_a_long_circle_is_found_quickly() -> None:
    count = 5_000
    models = {
        f"e{i}": Model(f"e{i}", "", parse_config(ensemble([Step(f"e{(i + 1) % count}", {}, {})]).encode()))
        for i in range(count)
    }
    circular = circular_ensembles(Repository(models))
    assert len(circular) == count
    assert circular["e7"] == ([f"e{i}" for i in range(7, 7 + LONGEST_WAY)], False)


@pytest.mark.long
def test_many_parallel_steps_are_quick(tmp_path: Path) -> None:
    write_model(tmp_path, "a", WARMED)
    outputs = [f"y{i}" for i in range(MAX_STEPS)]
    write_model(tmp_path, "e", ensemble([Step("a", {"x": "x"}, {"y": y}) for y in outputs], outputs=outputs))
    assert found(tmp_path) == []


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_a_configuration_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_config(data)


FRAGMENT = st.sampled_from(
    [
        'name: "a"', 'platform: "ensemble"', 'platform: "tensorrt_plan"', 'backend: "python"', "dynamic_batching { }",
        "max_batch_size: 4", "version_policy { specific { versions: 7 } }", "version_policy { latest { } }",
        'input { name: "x" dims: -1 }', 'input { data_type: 77 dims: 1 optional: true }', 'output { name: "x" }',
        "optimization { cuda { graphs: true graph_spec { } } }", 'model_warmup { inputs { key: "x" value { } } }',
        'ensemble_scheduling { step { } step { model_name: "a" input_map { key: "x" value: "x" } } }',
        'ensemble_scheduling { step { model_name: "b" output_map { key: "x" value: "x" } } }',
        "dynamic_batching { priority_queue_policy { key: 2 value { max_queue_size: 1 } } }",
        "response_cache { enable: true }",
    ]
)  # fmt: skip


@given(st.lists(FRAGMENT, max_size=6), st.lists(FRAGMENT, max_size=6))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_is_examined(tmp_path: Path, first: list[str], second: list[str]) -> None:
    for name, fragments in (("a", first), ("b", second)):
        (tmp_path / name / "1").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.pbtxt").write_text("\n".join(fragments))
    for one in diagnose([tmp_path]).findings:
        assert one.to_json()["what"]


def test_numpy_2_matters_where_a_stub_runs_that_was_built_against_1(tmp_path: Path) -> None:
    write_model(tmp_path, "a", WARMED)
    new = StubEnvironment("/usr/bin/python3", "2.3.5", old_server=True)
    (one,) = diagnose([tmp_path], stub=new).findings
    assert (one.rule, one.where) == (NUMPY_2, "/usr/bin/python3")
    assert not diagnose([tmp_path], version=(2, 53), stub=new).findings
    assert not diagnose([tmp_path], stub=StubEnvironment("python3", "1.26.4", old_server=True)).findings
    assert not diagnose([tmp_path], stub=StubEnvironment("python3", "2.3.5")).findings  # of whatever server it is
    assert diagnose([tmp_path], version=(2, 51), stub=StubEnvironment("python3", "2.3.5")).findings


def plan(folder: Path, tag: bytes, *version: int) -> None:
    """A plan as far as its header goes, which tells the flavour and the version."""
    head = HEADER.pack(tag, 0, HEADER.size, *version)
    (folder / "1" / "model.plan").write_bytes(head)


@pytest.mark.parametrize(
    ("tag", "version", "here", "said"),
    [
        (RTX_TAG, (1, 7, 1, 116), None, "the plan is TensorRT for RTX 1.7.1.116's"),
        (TENSORRT_TAG, (10, 13, 3, 9), None, None),  # no server is here: whoever runs it may have that TensorRT
        (TENSORRT_TAG, (10, 13, 3, 9), "10.13.3.9", None),
        (TENSORRT_TAG, (10, 13, 3, 9), "11.1.0.106", "the plan is TensorRT 10.13.3.9's; TensorRT 11.1.0.106 runs here"),
        (TENSORRT_TAG, (10, 13, 3, 9), "", "the plan is TensorRT 10.13.3.9's; no TensorRT runs here"),
        (b"elf?", (0, 0, 0, 0), None, "a TensorRT plan opens with"),
    ],
)
def test_plans_are_for_one_tensorrt(
    tmp_path: Path, tag: bytes, version: tuple[int, ...], here: str | None, said: str | None
) -> None:
    config = WARMED.replace('backend: "python"', 'platform: "tensorrt_plan"')
    for name, text in (("a", config), ("b", WARMED)):  # a plan that the python backend doesn't look at
        plan(write_model(tmp_path, name, text), tag, *version)
    findings = [one for one in diagnose([tmp_path], tensorrt=here).findings if one.rule is PLAN_MISFIT]
    assert [one.model for one in findings] == (["a"] if said else [])
    assert all(said in one.what for one in findings if said)


@pytest.mark.skipif(shutil.which("tritonserver") is not None, reason="another server than the wheel's is here")
def test_the_wheels_server_runs_no_plans() -> None:
    assert tensorrt_here() == ""


def test_a_model_with_an_environment_of_its_own_is_spared(tmp_path: Path) -> None:
    own = 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "env.tar.gz" } }'
    write_model(tmp_path, "a", f"{WARMED} {own}")
    assert not diagnose([tmp_path], stub=StubEnvironment("python3", "2.0.0", old_server=True)).findings


def test_the_environment_is_that_of_the_server_that_would_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = stub_environment()
    assert ours is not None
    assert ours.old_server
    assert ours.numpy.startswith("1.")
    for name, answer in (("tritonserver", ""), ("python3", "echo 2.9.9")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stub_environment() == StubEnvironment(str(tmp_path / "python3"), "2.9.9")
