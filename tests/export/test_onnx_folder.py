"""Stages that were made elsewhere: completed, tried, exported and served; each fault is told with how to mend it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cmt_cli.export import golden_sample
from cmt_client import EmotionClient
from cmt_export import export as export_module
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_export.export import ExportOptions, export
from cmt_export.model import run_model
from cmt_export.onnx_completion import outputs_made_up
from cmt_export.onnx_folder import OnnxFolderError, open_onnx_folder
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.progress import no_progress
from cmt_pipeline.stages import COMPILED_STAGES
from cmt_pipeline.tensors import DEFAULT_SIZES
from cmt_release.release import Release
from exports import exported
from items import as_request
from serving import server_on
from small_graphs import needs_rtx

TEXT, IMAGE, AUDIO, FUSE = "encode_text.onnx", "encode_image.onnx", "encode_audio.onnx", "fuse.onnx"
LABELS = ["calm", "angry", "sad", "glad", "bored", "proud", "shy"]
Change = Callable[[ModelProto], object]


@pytest.fixture(scope="module")
def tiny_model() -> Checkpoint:
    """What the given graphs were exported from."""
    return checkpoint_from_preset("tiny", "meld")


@pytest.fixture(scope="module")
def given(tiny_model: Checkpoint, tmp_path_factory: pytest.TempPathFactory, _in_use: contextlib.ExitStack) -> Path:
    """Graphs as somebody else would export them: weights inside, without any output that the others give."""
    _, graphs = exported(ExportOptions(preset="tiny"), _in_use)
    folder = tmp_path_factory.mktemp("given")
    for stage in COMPILED_STAGES:
        model = onnx.load(str(graphs / stage.name / "model.onnx"))
        left_out = outputs_made_up(stage)
        kept = [info for info in model.graph.output if info.name not in left_out]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        for node in model.graph.node:
            for index, name in enumerate(node.output):
                node.output[index] = f"inner_{name}" if name in left_out else name
        onnx.save_model(model, str(folder / f"{stage.name}.onnx"))
    shutil.copyfile(tiny_model.tokenizer, folder / "tokenizer.json")
    (folder / "model.toml").write_text(f'name = "borrowed"\nlabels = {json.dumps(LABELS)}\nlabel_set = "moods"\n')
    return folder


@pytest.fixture
def folder(given: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(given, tmp_path / "given"))


def faults_of(folder: Path) -> tuple[str, ...]:
    """What is told of a folder; the graphs are tried on one batch of two short items."""
    with pytest.raises(OnnxFolderError) as raised:
        open_onnx_folder(folder, folder.parent / "graphs", (2,))
    assert not [path for path in (folder.parent / "graphs").glob("*") if path.is_dir()]
    return raised.value.faults


def changed(folder: Path, file: str, change: Change) -> None:
    model = onnx.load(str(folder / file))
    change(model)
    onnx.save_model(model, str(folder / file))


def renamed(old: str, new: str) -> Change:
    def change(model: ModelProto) -> None:
        for info in (*model.graph.input, *model.graph.output):
            info.name = new if info.name == old else info.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return change


def typed(name: str, kind: int) -> Change:
    """An input of another type, cast within."""

    def change(model: ModelProto) -> None:
        renamed(name, f"cast_{name}")(model)
        info = next(info for info in model.graph.input if info.name == f"cast_{name}")
        was = info.type.tensor_type.elem_type
        info.name, info.type.tensor_type.elem_type = name, kind
        model.graph.node.insert(0, helper.make_node("Cast", [name], [f"cast_{name}"], to=was))

    return change


def sized(name: str, axis: int, size: int) -> Change:
    def change(model: ModelProto) -> None:
        for info in (*model.graph.input, *model.graph.output):
            if info.name == name:
                info.type.tensor_type.shape.dim[axis].dim_value = size

    return change


def without_mask(model: ModelProto) -> None:
    """The attention mask is a constant instead of an input."""
    kept = [info for info in model.graph.input if info.name != "attention_mask"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["ids_shape"], ["ones"]))
    model.graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["ids_shape"]))
    model.graph.node.insert(2, helper.make_node("Cast", ["ones"], ["attention_mask"], to=TensorProto.INT64))


def mixing(name: str, axis: int) -> Change:
    """Adds to an output its own mean over an axis: over the batch, or over tokens, padding among them."""

    def change(model: ModelProto) -> None:
        renamed(name, f"own_{name}")(model)
        next(info for info in model.graph.output if info.name == f"own_{name}").name = name
        axes = numpy_helper.from_array(np.array([axis]), "mixed_axis")
        model.graph.initializer.append(axes)
        model.graph.node.append(
            helper.make_node("ReduceMean", [f"own_{name}", "mixed_axis"], ["mixed_mean"], keepdims=1)
        )
        model.graph.node.append(helper.make_node("Add", [f"own_{name}", "mixed_mean"], [name]))

    return change


def custom(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.append(helper.make_node("Secret", ["input_ids"], ["secret"], domain="com.example"))


def old(model: ModelProto) -> None:
    model.opset_import[0].version = 9


def elsewhere(location: str) -> Change:
    """Names weights that lie somewhere else."""

    def change(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 1000)
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL

    return change


def nan(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))


FAULTS: list[tuple[str, Change, str]] = [
    (IMAGE, sized("pixel_values", 0, 1), "input pixel_values: got a batch of 1 alone; expected any: export it with a"),
    (TEXT, sized("input_ids", 1, 64), "input input_ids: got tokens of 64 alone; expected 16, 32, 64, 128: export it"),
    (IMAGE, sized("pixel_values", 2, 384), "input pixel_values: got height of 384; expected pixel_values FP32 [batch,"),
    (
        TEXT,
        renamed("input_ids", "ids"),
        "input input_ids INT64 [batch, tokens] is missing (the graph has ids: rename it)",
    ),
    (TEXT, renamed("text_features", "last_hidden_state"), "(the graph has last_hidden_state: rename it)"),
    (TEXT, typed("input_ids", TensorProto.INT32), "input input_ids: got type INT32; expected input_ids INT64 [batch,"),
    (TEXT, without_mask, "input attention_mask INT64 [batch, tokens] is missing"),
    (TEXT, custom, "got custom operators com.example.Secret; expected ONNX's own alone, which every engine compiles"),
    (TEXT, old, "got opset 9; expected 13 to"),
    (TEXT, elsewhere("../weights.bin"), "got weights in '../weights.bin', outside of the graph's folder; expected a"),
    (TEXT, elsewhere("/etc/passwd"), "got weights in '/etc/passwd', outside of the graph's folder; expected a file"),
    (TEXT, elsewhere("link.bin"), "got weights in 'link.bin', which is a link; expected a file beside the graph"),
    (TEXT, elsewhere("gone.bin"), "lacks its weights 'gone.bin': copy that file beside it, under the same name"),
    (TEXT, elsewhere("short.bin"), "got 3 bytes in 'short.bin', too few for its weights; it was cut: copy it again"),
    (FUSE, sized("logits", 1, 8), "output logits: got 8 labels; the description names 7: name each, in the order of"),
    (TEXT, mixing("text_features", 0), "in a batch of 2 from those that it gets alone; expected at most 0.001"),
    (TEXT, mixing("text_features", 1), "when input_ids is padded from 16 to 32; expected at most 0.001: mask the"),
    (AUDIO, mixing("audio_features", 1), "when input_values is padded from 18000 to 25680; expected at most 0.001"),
    (FUSE, mixing("valence_arousal", 0), "an item's answer differs by"),
    (IMAGE, nan, "got image_features with NaN or infinity; expected finite values, in padding too"),
]


@pytest.mark.long
@pytest.mark.parametrize(("file", "change", "message"), FAULTS)
def test_a_fault_is_told_with_how_to_mend_it(file: str, change: Change, message: str, folder: Path) -> None:
    (folder / "short.bin").write_bytes(b"123")
    (folder / "link.bin").symlink_to("/etc/passwd")
    changed(folder, file, change)
    told = [fault for fault in faults_of(folder) if fault.startswith(f"{file}: ") and message in fault]
    assert told, faults_of(folder)


def test_all_faults_are_told_at_once(folder: Path) -> None:
    changed(folder, TEXT, typed("attention_mask", TensorProto.FLOAT))
    changed(folder, TEXT, sized("input_ids", 0, 1))
    (folder / IMAGE).unlink()
    (folder / AUDIO).write_bytes((folder / AUDIO).read_bytes()[:2000])
    (folder / FUSE).write_bytes(b"<html>not found</html>")
    (folder / "model.toml").write_text('labels = ["calm"]\nlables = 1\n[preprocess]\nimage_mean = 0.5\n')
    told = faults_of(folder)
    for wanted in (
        "model.toml: got lables; expected some of label_set, labels, name, preprocess, trained",
        "model.toml: labels: got ['calm']; expected two or more different names",
        "model.toml: preprocess.image_mean: got 0.5; expected a list",
        "encode_image.onnx: is missing; every stage of the contract needs its graph",
        "encode_audio.onnx: can't be read as ONNX",
        "fuse.onnx: can't be read as ONNX",
        "encode_text.onnx: input input_ids: got a batch of 1 alone",
        "encode_text.onnx: input attention_mask: got type FLOAT",
    ):
        assert [fault for fault in told if fault.startswith(wanted)], (wanted, told)
    assert len(told) == 8


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("tokenizer.json", "tokenizer.json is missing: put the one there that the text encoder was trained with"),
        ("model.toml", "model.toml: can't be read ([Errno 2] No such file or directory"),
    ],
)
def test_a_lost_file_is_named(lost: str, message: str, folder: Path) -> None:
    (folder / lost).unlink()
    assert faults_of(folder)[0].startswith(message)


def test_a_tokenizer_of_another_model_is_found_out(folder: Path, trained_tokenizer: Path) -> None:
    shutil.copyfile(trained_tokenizer, folder / "tokenizer.json")
    assert "encode_text.onnx: doesn't take token 30521, the last of 30522" in str(faults_of(folder))


@pytest.fixture
def trained_tokenizer() -> Path:
    return checkpoint_from_preset("mini", "meld").tokenizer


@pytest.fixture(scope="module")
def released(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The given graphs as a release for OpenVINO."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "PARITY_BATCHES", (2, 1))
        store = tmp_path_factory.mktemp("store")
        release, built = export(ExportOptions(onnx=given), store, golden_sample(), no_progress)
    assert built
    return release


@pytest.mark.long
def test_given_graphs_become_a_release_that_says_so(released: Release, given: Path) -> None:
    released.verify()
    manifest, info = released.manifest, released.manifest.info
    assert (info.preset, info.label_set, info.labels, info.trained) == ("borrowed", "moods", tuple(LABELS), True)
    assert manifest.source == "onnx"
    assert "torch" not in manifest.versions
    assert {row["engine"] for row in manifest.parity} == {"openvino"}
    assert all(0 <= row["error"] <= row["tolerance"] for row in manifest.parity)
    assert len(manifest.parity) == len(COMPILED_STAGES) + len(SUBSETS)
    again, built = export(ExportOptions(onnx=given), released.folder.parent, golden_sample(), no_progress)
    assert (again.number, built) == (released.number, False)


@pytest.mark.long
def test_golden_answers_are_those_of_the_model_that_the_graphs_are_of(
    released: Release, tiny_model: Checkpoint
) -> None:
    """The stand-ins, masks and probabilities that the graphs lacked are PyTorch's own."""
    preprocessors = make_preprocessors(tiny_model.config.preprocess, tiny_model.tokenizer)
    ready = {m: collate(m, [preprocessors[m](data)]) for m, data in golden_sample().files.items()}
    assert [answer.modalities for answer in released.manifest.golden] == list(SUBSETS)
    for answer in released.manifest.golden:
        wanted = run_model(tiny_model.model, {k: v for m in answer.modalities for k, v in ready[m].items()})
        assert list(answer.probabilities.values()) == pytest.approx(wanted["probabilities"][0].tolist(), abs=1e-5)
        assert [answer.valence, answer.arousal] == pytest.approx(wanted["valence_arousal"][0].tolist(), abs=1e-5)


@pytest.mark.long
@pytest.mark.triton
def test_given_graphs_are_served(released: Release, tmp_path: Path) -> None:
    with server_on(released, tmp_path) as running, EmotionClient(running.grpc_url) as client:
        for answer in released.manifest.golden:
            emotion = client.predict(**as_request({m: golden_sample().files[m] for m in answer.modalities}))
            assert emotion.probabilities == pytest.approx(dict(answer.probabilities), abs=1e-4)
            assert (emotion.preset, emotion.label_set, emotion.modalities) == ("borrowed", "moods", answer.modalities)


BUILDS = [
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
]


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), [*BUILDS, ("tensorrt", "bf16")])
def test_every_engine_is_built_of_given_graphs(engine: str, precision: str, given: Path, tmp_path: Path) -> None:
    options = ExportOptions(onnx=given, engine=engine, precision=precision)
    release, _ = export(options, tmp_path, golden_sample(), no_progress)
    assert (release.manifest.info.engine, release.manifest.info.precision) == (engine, precision)
    assert len(release.manifest.golden) == len(SUBSETS)


def test_weights_may_lie_beside_a_graph(folder: Path) -> None:
    model = onnx.load(str(folder / TEXT))
    (folder / "text").mkdir()
    onnx.save_model(model, str(folder / TEXT), save_as_external_data=True, location="text/w.bin", size_threshold=0)
    opened = open_onnx_folder(folder, folder.parent / "graphs", (2,))
    assert opened.model.sizes == DEFAULT_SIZES
