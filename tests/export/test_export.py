"""Export end to end: checkpoint -> ONNX -> engines -> release, once for each recipe."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmt_cli.export import golden_sample, kept_in_fp32, run_export
from cmt_cli.state import State
from cmt_engine import tensorrt_build, tensorrt_engine
from cmt_engine.engine import ENGINES, EngineSidecar, Precision, keep, sha256_of
from cmt_engine.gpu import Gpu
from cmt_engine.openvino_engine import OPENVINO
from cmt_engine.plan_file import read_plan
from cmt_engine.tensorrt_contract import inspect_engine
from cmt_engine.tensorrt_module import TensorRt, load_tensorrt
from cmt_export import export as export_module
from cmt_export import parity
from cmt_export.checkpoint import Checkpoint, save_checkpoint
from cmt_export.export import PARITY_BATCHES, ExportOptions, GoldenSample, export, recipe_of
from cmt_export.model import run_model
from cmt_export.parity import ParityError
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.pipelines import pipeline_name
from cmt_pipeline.preprocess import TOKENIZER_FILE, collate, fingerprint, open_config, open_preprocessors
from cmt_pipeline.stages import COMPILED_STAGES, STAGES, sized
from cmt_pipeline.tensors import DEFAULT_SIZES, Array
from cmt_release.manifest import Tensor
from cmt_release.release import Release, open_release, release_numbers
from small_graphs import needs_rtx

COMPILED = [stage.name for stage in COMPILED_STAGES]


def silent(what: str, done: float) -> None:
    """Tells nobody how far along an export is."""


@pytest.fixture(scope="module")
def fp32(release_of: Callable[[Precision], Release]) -> Release:
    """Mini, OpenVINO, fp32."""
    return release_of("fp32")


@pytest.fixture
def store(graph_folder: Path, tmp_path: Path) -> Path:
    """Without releases, but with the ONNX files: so that an export takes seconds."""
    shutil.copytree(graph_folder, tmp_path / "releases" / ".onnx" / graph_folder.name)
    return tmp_path / "releases"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tvm"}, "engine: got 'tvm'; expected one of openvino, tensorrt, onnxruntime"),
        ({"precision": "fp16"}, "precision: got 'fp16'; openvino takes fp32, bf16, int8"),
        ({"engine": "tensorrt", "precision": "int8"}, "precision: got 'int8'; tensorrt takes fp32, fp16, bf16"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "precision: got 'bf16'; onnxruntime takes fp32"),
        ({"label_set": "melt"}, "label set: got 'melt'; expected one of meld"),
        ({"preset": "huge"}, "preset: got 'huge'; expected one of base, fast, mini"),
        ({"checkpoint_sha256": "ab" * 32}, "got checkpoint_sha256 without a checkpoint"),
    ],
)
def test_options_that_dont_fit_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportOptions(**options)


@pytest.mark.long
def test_a_recipe_changes_with_all_that_makes_a_release(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(checkpoint, tmp_path / "checkpoint")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.txt").write_text("one")
    base, golden = ExportOptions(checkpoint=tmp_path / "checkpoint", calibration=tmp_path / "data"), golden_sample()
    recipes = [recipe_of(base, golden)]
    assert recipe_of(replace(base), golden_sample()) == recipes[0]
    changes: list[dict[str, Any]] = [
        {"precision": "bf16"},
        {"engine": "onnxruntime"},
        {"label_set": "iemocap4"},
        {"seed": 1},
        {"random_weights": True},
        {"checkpoint": None},
        {"calibration": None},
        {"merged_tokens": 8},
    ]
    recipes += [recipe_of(replace(base, **change), golden) for change in changes]
    recipes.append(recipe_of(base, GoldenSample()))
    recipes.append(recipe_of(base, GoldenSample(dict(golden.files) | {"text": b"another"})))
    (tmp_path / "data" / "one.txt").write_text("two")
    recipes.append(recipe_of(base, golden))
    with (tmp_path / "checkpoint" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    recipes.append(recipe_of(base, golden))
    monkeypatch.setattr(export_module.importlib.metadata, "version", lambda name: "0")
    recipes.append(recipe_of(base, golden))
    assert len(set(recipes)) == len(recipes)


def test_a_plan_is_made_anew_for_another_gpu_or_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton runs a plan only on the GPU and with the version that it was built with."""
    options, golden = ExportOptions(engine="tensorrt", precision="fp16"), GoldenSample()
    recipes = set()
    for version, gpu in (("10.13", Gpu("L4", "8.9")), ("10.14", Gpu("L4", "8.9")), ("10.13", Gpu("A100", "8.0"))):
        module = type("Module", (), {"__version__": version})
        found = TensorRt(module, rtx=False, gpu=gpu)
        monkeypatch.setattr(tensorrt_engine, "load_tensorrt", lambda flavour, found=found: found)
        recipes.add(recipe_of(options, golden))
    assert len(recipes) == 3


def test_a_release_has_the_parity_of_every_step(fp32: Release) -> None:
    rows = fp32.manifest.parity
    stages = [(name, engine) for name in COMPILED for engine in ("onnx", "openvino")]
    pipelines = [(pipeline_name(subset), "openvino") for subset in SUBSETS]
    assert [(row["what"], row["engine"]) for row in rows] == stages + pipelines
    for row in rows:
        assert row["cases"] == len(PARITY_BATCHES)
        assert 0 <= row["error"] <= row["tolerance"]
        tolerance = OPENVINO.tolerances["fp32"]
        wanted = tolerance.probability if row["what"].startswith("emotion") else tolerance.relative
        assert (row["precision"], row["tolerance"]) == ("fp32", wanted)
    for name in COMPILED:
        row = EngineSidecar.read(fp32.stage_folder(name)).parity
        assert row in rows
        assert (row["what"], row["engine"]) == (name, "openvino")


def test_a_release_holds_what_its_stages_need(fp32: Release) -> None:
    fp32.verify()
    files = {name: set(stage.files) for name, stage in fp32.manifest.stages.items()}
    assert files.keys() == STAGES.keys()
    assert all("model.py" in of_stage for of_stage in files.values())
    assert files["preprocess"] >= {"preprocess.json", "tokenizer.json"}
    assert all(files[name] >= {"engine.json", "model.xml", "model.bin"} for name in COMPILED)
    assert (fp32.stage_folder("fuse") / "labels.txt").read_text().split() == list(labels_of("meld"))
    info = fp32.manifest.info
    assert (info.release, info.label_set, info.labels) == (fp32.number, "meld", labels_of("meld"))
    assert (info.preset, info.engine, info.precision, info.trained) == ("mini", "openvino", "fp32", True)
    assert fp32.manifest.versions.keys() >= {"torch", "transformers", "onnx", "openvino", "nncf", "numpy"}


@pytest.mark.long
def test_golden_answers_are_those_of_pytorch(fp32: Release, checkpoint: Checkpoint) -> None:
    preprocessors = open_preprocessors(fp32.stage_folder("preprocess"))
    assert [answer.modalities for answer in fp32.manifest.golden] == list(SUBSETS)
    assert fp32.golden_files() == golden_sample().files
    assert fp32.manifest.golden_tolerance == OPENVINO.tolerances["fp32"].probability
    for answer in fp32.manifest.golden:
        tensors: dict[str, Array] = {}
        for m in answer.modalities:
            tensors |= collate(m, [preprocessors[m](fp32.golden_files()[m])])
        wanted = run_model(checkpoint.model, tensors)
        assert set(answer.probabilities) == set(labels_of("meld"))
        came = [answer.probabilities[label] for label in labels_of("meld")]
        assert came == pytest.approx(wanted["probabilities"][0].tolist(), abs=1e-5)
        assert [answer.valence, answer.arousal] == pytest.approx(wanted["valence_arousal"][0].tolist(), abs=1e-5)


def test_a_manifest_says_what_a_server_of_the_release_looks_like(fp32: Release) -> None:
    folder = fp32.stage_folder("preprocess")
    assert fp32.manifest.preprocess == fingerprint(open_config(folder), folder / TOKENIZER_FILE)
    text = fp32.manifest.tensors["encode_text"]
    assert text.inputs == {name: Tensor("INT64", (-1,)) for name in ("input_ids", "attention_mask")}
    assert text.outputs["text_features"] == Tensor("FP32", (-1, 256))
    assert fp32.manifest.tensors["fuse"].outputs["probabilities"] == Tensor("FP32", (7,))


def test_the_same_recipe_is_not_built_twice(fp32: Release, recipe: ExportOptions, state: State) -> None:
    told: list[str] = []
    before = release_numbers(state.releases)
    again, built = export(recipe, state.releases, golden_sample(), lambda what, done: told.append(what))
    assert (again, built) == (open_release(state.releases, fp32.number), False)
    assert release_numbers(state.releases) == before
    assert told == ["looking for a release of the same recipe"]


@pytest.fixture
def quick(recipe: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> ExportOptions:
    """An export that compares one short item alone."""
    monkeypatch.setattr(export_module, "PARITY_BATCHES", (1,))
    monkeypatch.setattr(export_module, "CALIBRATION_ITEMS", 1)
    return replace(recipe, engine="onnxruntime")


@pytest.mark.long
@needs_rtx
def test_tensorrt_plans_are_built_and_keep_the_contract(
    quick: ExportOptions, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And another engine makes another release."""
    for module in (tensorrt_engine, tensorrt_build):  # also where a GPU would have TensorRT itself chosen
        monkeypatch.setattr(module, "load_tensorrt", lambda flavour: load_tensorrt("tensorrt_rtx"))
    told: list[float] = []
    closed = ENGINES["tensorrt"].closed_here()  # where no GPU is, plans are built all the same
    options = replace(quick, engine="tensorrt", precision="fp16")
    plans, built = export(options, store, golden_sample(), lambda _, done: told.append(done))
    assert (plans.number, built) == (1, True)
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1
    for stage in COMPILED_STAGES:
        folder = plans.stage_folder(stage.name)
        report = inspect_engine(folder, lambda: ())
        assert report.read_from == "plan"
        came = {tensor.name: (tensor.dtype, tensor.dims) for tensor in report.tensors}
        whole = sized(stage, DEFAULT_SIZES)
        specs = (*whole.inputs, *whole.outputs)
        sizes = {s.name: [axis.dim if axis.sizes else 7 for axis in s.axes] for s in specs}
        assert came == {s.name: (s.dtype, (-1, *sizes[s.name])) for s in specs}
        assert read_plan(folder / "model.plan").rtx
        sidecar = EngineSidecar.read(folder)
        assert (sidecar.engine, sidecar.precision, bool(sidecar.parity)) == ("tensorrt", "fp16", not closed)
    assert {row["engine"] for row in plans.manifest.parity} == ({"onnx"} if closed else {"onnx", "tensorrt"})
    assert "tensorrt_rtx" in plans.manifest.versions

    graphs, built = export(quick, store, golden_sample(), silent)
    assert (graphs.number, built) == (2, True)
    assert {name: stage.version for name, stage in graphs.manifest.stages.items()} == {
        name: 2 if stage.compiled or stage.stamped else 1 for name, stage in STAGES.items()
    }
    assert export(options, store, golden_sample(), silent) == (open_release(store, 1), False)
    assert run_export(options, State(store.parent)) == plans
    assert (f"no parity of tensorrt: {closed}" in " ".join(capsys.readouterr().out.split())) is bool(closed)
    for release in (plans, graphs):
        release.verify()
        assert kept_in_fp32(release) == []  # these weights hold no outliers
    folder = plans.stage_folder("encode_text")
    replace(EngineSidecar.read(folder), fp32_tensors={"gelu": 225_172.0, "linear_3": 80_000.0}).write(folder)
    assert kept_in_fp32(plans) == [
        "encode_text: stay in fp32, since fp16 doesn't hold what samples make of them (up to 2.25e+05): gelu, linear_3"
    ]


def test_an_export_that_misses_its_tolerance_leaves_no_release(
    quick: ExportOptions, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = parity.stage_parity

    def off_in_one_stage(*arguments: Any, **more: Any) -> parity.ParityRow:
        row = right(*arguments, **more)
        return replace(row, error=float("nan")) if (row.what, row.engine) == ("encode_text", "onnxruntime") else row

    monkeypatch.setattr(parity, "stage_parity", off_in_one_stage)
    with pytest.raises(ParityError, match="encode_text onnxruntime fp32: nan > 1e-04") as raised:
        export(quick, store, golden_sample(), silent)
    assert [row.what for row in raised.value.rows if not row.passed] == ["encode_text"]
    assert len(raised.value.rows) == 2 * len(COMPILED) + len(SUBSETS)  # the whole table can be shown
    assert release_numbers(store) == []
    assert not list(store.glob(".draft*"))


@pytest.mark.long
def test_an_interrupt_leaves_no_release(quick: ExportOptions, store: Path) -> None:
    def interrupt(what: str, done: float) -> None:
        if what.startswith("encode_audio: ONNX to"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(quick, store, golden_sample(), interrupt)
    assert [path.name for path in store.iterdir()] == [".onnx"]


def test_exports_at_once_leave_each_other_their_graphs(tmp_path: Path) -> None:
    root = tmp_path / ".onnx"
    with export_module._fresh_cache(root, "first") as first:
        (first / "graph").write_text("")
        with export_module._fresh_cache(root, "second") as second, export_module._fresh_cache(root, "first") as again:
            assert (first / "graph").is_file()
            assert again == first
            assert second.is_dir()
        with export_module._fresh_cache(root, "third"):
            assert sorted(path.name for path in root.iterdir()) == ["first", "third"]


def test_of_two_drafts_of_a_graph_the_first_stays(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "graph").write_text(name)
        keep(tmp_path / name, tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "graph").read_text() == "first"


@pytest.mark.long
def test_a_checkpoint_is_exported_with_what_it_says_of_itself(
    quick: ExportOptions, store: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own label set and preset; the digest that was asked for is checked."""
    save_checkpoint(checkpoint, tmp_path / "checkpoint")
    digest = sha256_of(tmp_path / "checkpoint" / "model.safetensors")
    options = replace(quick, checkpoint=tmp_path / "checkpoint", checkpoint_sha256=digest, label_set="iemocap4")
    graphs = store / ".onnx" / export_module._onnx_key(quick)
    # the same weights, so the same graphs
    monkeypatch.setattr(export_module, "_fresh_cache", lambda root, key: contextlib.nullcontext(graphs))
    release, built = export(options, store, GoldenSample(), silent)
    assert built
    assert release.manifest.info.label_set == "meld"
    assert (release.manifest.golden, release.golden_files()) == ([], {})
