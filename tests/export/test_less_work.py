"""Encoders that do less: patches that merge, and the first layers of published weights alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
import torch
from torch import Tensor, nn

from cmt_engine.engine import ENGINES, Build, open_engine
from cmt_engine.typed_onnx import onnx_in_precision
from cmt_export import export as export_module
from cmt_export.checkpoint import (
    Checkpoint,
    checkpoint_from_preset,
    load_checkpoint,
    merging_tokens,
    save_checkpoint,
)
from cmt_export.errors import CheckpointError
from cmt_export.export import ExportOptions, GoldenSample
from cmt_export.family import FAMILIES
from cmt_export.onnx_from_checkpoint import example, onnx_from_checkpoint
from cmt_export.parity import references, stage_parity
from cmt_export.samples import batches
from cmt_export.token_merging import merged_states
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.presets import preset_of
from cmt_pipeline.progress import no_progress
from cmt_pipeline.stages import STAGES
from cmt_training.frozen import digest_of
from published import ENCODERS, backbone, preset_file, published

MERGING = ["vit", "deit", "vit, patches of 32", "dinov2", "dinov2, registers"]
#: Published encoders of two layers, of which the first is asked for.
SHORTENED = ["vit", "dinov2", "wav2vec2", "wavlm, layer norm", "data2vec-audio", "whisper"]
SHORTENED += ["bert", "distilbert", "albert", "deberta-v3", "mpnet"]


def merging(name: str, count: int) -> tuple[Any, Any]:
    """The encoder of a family that merges so many patches a layer, and transformers' own."""
    family, own = FAMILIES[ENCODERS[name][0]], backbone(name, **({} if "dinov2" in name else {"image_size": 224}))
    encoder = family.wrap(family.settled(own)).eval()
    own.config.merged_tokens = count
    return encoder, own


def through(name: str, embedded: Tensor, count: int, prefix: int = 1) -> Tensor:
    """Tokens through the layers of a family's encoder."""
    family, own = FAMILIES[ENCODERS[name][0]], backbone(name)
    assert family.layer_parts is not None
    layers = list(own.get_submodule(family.layers_in))
    return merged_states(embedded, layers, family.layer_parts, count=count, prefix=prefix)


@torch.no_grad()
@pytest.mark.parametrize("name", MERGING)
def test_where_none_merge_it_is_transformers_own(name: str) -> None:
    _, own = merging(name, 0)
    family = FAMILIES[ENCODERS[name][0]]
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found = through(name, own.embeddings(pixels), 0, family.prefix_tokens(own.config))
    assert torch.allclose(own.layernorm(found), own(pixels).last_hidden_state, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_patches_that_are_the_same_merge_without_a_trace(name: str) -> None:
    """Their mean is each, and attention counts the one as often as they were."""
    embedded = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(2))
    fourfold = torch.cat([embedded[:, :1], embedded[:, 1:].repeat_interleave(4, dim=1)], dim=1)
    assert torch.allclose(through(name, fourfold, 98), through(name, fourfold, 0), atol=1e-5)


def attended(attention: Any, normed: Tensor, sizes: list[int]) -> Tensor:
    """Attention in which each token is there as often as it has patches: a head at a time."""
    query, key, value = (made(normed) for made in (attention.q_proj, attention.k_proj, attention.v_proj))
    copies = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    parts = []
    for q, k, v in zip(*(x.split(attention.head_dim, dim=1) for x in (query, key, value)), strict=True):
        parts.append((q @ k[copies].T / attention.head_dim**0.5).softmax(dim=1) @ v[copies])
    found: Tensor = attention.o_proj(torch.cat(parts, dim=1))
    return found


@torch.no_grad()
def test_merging_is_what_the_paper_says() -> None:
    """Token by token, as its section 3 has it; a token is a list of patches."""
    own, count, patches = backbone("vit"), 5, 19
    embedded = torch.randn(1, 1 + patches, 32, generator=torch.Generator().manual_seed(3))
    first, *rest = embedded[0]
    groups = [[place] for place in range(patches)]
    for layer in own.layers:
        tokens = torch.stack([first, *rest])
        normed = layer.layernorm_before(tokens)
        first, *rest = tokens + attended(layer.attention, normed, [1, *map(len, groups)])
        heads = layer.attention.k_proj(normed[1:]).unflatten(1, (-1, layer.attention.head_dim))
        keys = nn.functional.normalize(heads.mean(dim=1), dim=1)
        alike = {i: [float(keys[i] @ keys[j]) for j in range(1, len(rest), 2)] for i in range(0, len(rest), 2)}
        gone = sorted(alike, key=lambda i: -max(alike[i]))[:count]
        into = {i: 2 * alike[i].index(max(alike[i])) + 1 for i in gone}
        stay = [[i] for i in alike if i not in gone]
        joined = stay + [[j, *(i for i in gone if into[i] == j)] for j in range(1, len(rest), 2)]
        weights = [torch.tensor([float(len(groups[i])) for i in members]) for members in joined]
        rest = [
            weight @ torch.stack([rest[i] for i in members]) / weight.sum()
            for members, weight in zip(joined, weights, strict=True)
        ]
        groups = [[place for i in members for place in groups[i]] for members in joined]
        first, *rest = (token + layer.mlp(layer.layernorm_after(token)) for token in (first, *rest))
    assert len(groups) == patches - count * len(own.layers)
    expected = torch.zeros(1 + patches, 32)
    expected[0] = first
    for token, group in zip(rest, groups, strict=True):
        expected[[1 + place for place in group]] = token
    assert torch.allclose(through("vit", embedded, count)[0], expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", MERGING)
def test_neighbours_decide_nothing(name: str) -> None:
    encoder, _ = merging(name, 8)
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    features, mask = encoder(pixels)
    assert features.shape[1:] == (*encoder.tokens, 256)
    assert mask.all()
    assert torch.allclose(features[1:2], encoder(pixels[1:2])[0], atol=2e-5)


@torch.no_grad()
def test_a_layer_with_nothing_left_to_merge_merges_nothing() -> None:
    embedded = torch.randn(1, 1 + 3, 32, generator=torch.Generator().manual_seed(5))
    found = through("vit", embedded, 100)
    assert found.shape == embedded.shape
    assert torch.equal(found[:, 1], found[:, 2]) or torch.equal(found[:, 1], found[:, 3])


def test_a_checkpoint_keeps_what_it_merges(tmp_path: Path) -> None:
    checkpoint = merging_tokens(checkpoint_from_preset("tiny", "meld"), 8)
    save_checkpoint(checkpoint, tmp_path / "merging")
    loaded = load_checkpoint(tmp_path / "merging")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        first, second = (each.model.encoders["image"](pixels)[0] for each in (checkpoint, loaded))
        without = merging_tokens(loaded, 0).model.encoders["image"](pixels)[0]
    assert loaded.config.encoders["image"].config["merged_tokens"] == 8
    assert torch.equal(first, second)
    assert not torch.allclose(first, without, atol=1e-3)


def test_features_that_were_kept_arent_those_of_an_encoder_that_merges() -> None:
    encoder = checkpoint_from_preset("tiny", "meld").model.encoders["image"]
    before = digest_of(encoder, torch.float32)
    encoder.backbone.config.merged_tokens = 8  # type: ignore[union-attr]
    assert digest_of(encoder, torch.float32) != before


@pytest.mark.long
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_merges_as_pytorch_does(engine: str, tmp_path: Path) -> None:
    checkpoint, stage = merging_tokens(checkpoint_from_preset("tiny", "meld"), 8), STAGES["encode_image"]
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    expected = references(checkpoint.model, stage, batches(preprocessors, (2, 1)))
    graph = onnx_from_checkpoint(checkpoint.model, stage, tmp_path / "onnx")
    (tmp_path / "engine").mkdir()
    ENGINES[engine].build(Build(graph, stage, tmp_path / "engine", "fp32"))
    assert stage_parity(open_engine(tmp_path / "engine"), ENGINES[engine], stage, "fp32", expected).error < 1e-4


@pytest.mark.long
def test_counting_what_merged_keeps_no_product_in_fp32(tmp_path: Path) -> None:
    """The logarithm of a count is taken, of patches that all of the encoder chose."""
    checkpoint, stage = merging_tokens(checkpoint_from_preset("mini", "meld"), 8), STAGES["encode_image"]
    graph = onnx_from_checkpoint(checkpoint.model, stage, tmp_path / "onnx")
    assert "Log" in {node.op_type for node in onnx.load(graph).graph.node}
    typed = onnx.load(onnx_in_precision(graph, "bf16", tmp_path / "typed.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    weighed = [node for node in typed.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert {types[node.output[0]] for node in weighed if node.output[0] in types} == {onnx.TensorProto.BFLOAT16}
    ENGINES["openvino"].build(Build(graph, stage, tmp_path / "engine", "bf16"))
    layers = ElementTree.parse(tmp_path / "engine" / "model.xml").iter("layer")
    marked = {la.get("type") for la in layers if la.find("rt_info/attribute[@name='precise']") is not None}
    assert "Log" in marked
    assert "MatMul" not in marked


def test_an_export_is_of_what_merges(tmp_path: Path) -> None:
    options = ExportOptions(preset="tiny", merged_tokens=8)
    source = export_module._Build(options, tmp_path, tmp_path, GoldenSample(), no_progress).source
    assert isinstance(source, Checkpoint)
    assert source.config.encoders["image"].config["merged_tokens"] == 8


@pytest.mark.long
@pytest.mark.parametrize("name", SHORTENED)
def test_the_first_layers_of_published_weights(name: str, tmp_path: Path) -> None:
    modality = FAMILIES[ENCODERS[name][0]].modality
    preset_file(tmp_path, {modality: name})
    folders = {m: tmp_path / m for m in ("image", "audio", "text")}
    asked = ",".join(f"{m}={folder}" + "?num_hidden_layers=1" * (m == modality) for m, folder in folders.items())
    shorter = checkpoint_from_preset(f"tiny,{asked}", "meld")
    whole = checkpoint_from_preset("tiny," + asked.replace("?num_hidden_layers=1", ""), "meld")
    assert shorter.config.encoders[modality].config["num_hidden_layers"] == 1
    state, longer = (each.model.encoders[modality].backbone.state_dict() for each in (shorter, whole))  # type: ignore[union-attr]
    assert len(state) < len(longer) or name == "albert"
    assert all(torch.equal(tensor, longer[key]) for key, tensor in state.items())
    save_checkpoint(shorter, tmp_path / "shorter")
    loaded = load_checkpoint(tmp_path / "shorter")
    assert state.keys() == loaded.model.encoders[modality].backbone.state_dict().keys()  # type: ignore[union-attr]
    inputs = [example(spec) for spec in STAGES[f"encode_{modality}"].inputs]
    with torch.no_grad():
        first, again, deeper = (each.model.encoders[modality](*inputs)[0] for each in (shorter, loaded, whole))
    assert torch.equal(first, again)
    assert not torch.allclose(first, deeper, atol=1e-3)


REFUSED = {
    "tiny,audio=?merged_tokens=8": "'wav2vec2' merges none; expected vit, deit, dinov2",
    "tiny,image=?layers=1": "got 'layers=1'; expected num_hidden_layers=NUMBER or merged_tokens=NUMBER",
    "tiny,image=?merged_tokens=-1": "got 'merged_tokens=-1'",
    "tiny,image=?": "expected num_hidden_layers=NUMBER",
    "tiny,text=?num_hidden_layers=0": "num_hidden_layers: got 0; expected 1 or more",
}


@pytest.mark.long
@pytest.mark.parametrize("preset", REFUSED)
def test_what_cant_be_done_is_refused(preset: str) -> None:
    with pytest.raises((ValueError, CheckpointError), match=re.escape(REFUSED[preset])):
        checkpoint_from_preset(preset, "meld")


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        ("swin", "num_hidden_layers=2", "a Swin's are told by `depths`"),
        ("swin", "merged_tokens=2", "'swin' merges none"),
        ("beit", "merged_tokens=2", "'beit' merges none"),
        ("bert", "num_hidden_layers=3", "lack 16 tensors of BertModel"),
        ("bert", "num_hidden_layers=0", "num_hidden_layers: got 0; expected 1 or more"),
    ],
)
def test_what_published_weights_cant_do_is_refused(name: str, asked: str, told: str, tmp_path: Path) -> None:
    modality = FAMILIES[ENCODERS[name][0]].modality
    more = {"image_size": 224} if modality == "image" else {}
    backbone(name, **more).save_pretrained(tmp_path)
    if modality == "text":
        published(name, tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        checkpoint_from_preset(f"tiny,{modality}={tmp_path}?{asked}", "meld")


def test_what_others_made_doesnt_merge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got ONNX stages, whose layers are what they are"):
        ExportOptions(onnx=tmp_path, merged_tokens=8)
    checkpoint = checkpoint_from_preset("tiny", "meld")
    encoders = {m: encoder for m, encoder in checkpoint.config.encoders.items() if m != "image"}
    blind = replace(checkpoint, config=replace(checkpoint.config, encoders=encoders))
    with pytest.raises(ValueError, match="a model that reads no images"):
        merging_tokens(blind, 8)


def test_a_preset_of_ones_own_may_ask_for_less(tmp_path: Path) -> None:
    path = preset_file(tmp_path, {"audio": "hubert"})
    path.write_text(path.read_text().replace("[encoders.text]", "config = {num_hidden_layers = 1}\n[encoders.text]"))
    assert preset_of(str(path)).encoders["audio"].config == {"num_hidden_layers": 1}
    found = checkpoint_from_preset(str(path), "meld").model.encoders["audio"]
    assert len(found.backbone.encoder.layers) == 1  # type: ignore[union-attr, arg-type]
