"""Folders as Hugging Face's hub holds them, made by transformers itself: small random encoders of every family."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from transformers import WhisperFeatureExtractor

from cmt_export.family import FAMILIES
from tiny_model import TEXT_ENCODER

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = json.loads((TEXT_ENCODER / "config.json").read_text())["vocab_size"]
TEXT = {**SMALL, "vocab_size": VOCABULARY, "pad_token_id": 0}
AUDIO = {**SMALL, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LAYER_NORM = {**AUDIO, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
DATA2VEC = {key: value for key, value in AUDIO.items() if key != "num_conv_pos_embeddings"}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
BUCKETS = {"position_buckets": 32, "norm_rel_ebd": "layer_norm"}
SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
WIDTH = 0.2  # of what is added to weights that begin as zeros, ones or next to nothing
#: Name -> family and what makes it small.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", SMALL),
    "deit": ("deit", SMALL),
    "beit": ("beit", SMALL),
    "vit, patches of 32": ("vit", {**SMALL, "patch_size": 32}),
    "swin": ("swin", SWIN),
    "dinov2": ("dinov2", {**DINO, "image_size": 518}),
    "dinov2, registers": ("dinov2_with_registers", {**DINO, "num_register_tokens": 3}),
    "wav2vec2": ("wav2vec2", AUDIO),
    "wav2vec2, layer norm": ("wav2vec2", LAYER_NORM),
    "hubert": ("hubert", AUDIO),
    "hubert, layer norm": ("hubert", LAYER_NORM),
    "wavlm": ("wavlm", AUDIO),
    "wavlm, layer norm": ("wavlm", LAYER_NORM),
    "data2vec-audio": ("data2vec-audio", {**DATA2VEC, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 9}),
    "whisper": (
        "whisper",
        {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "num_mel_bins": 20},
    ),
    "bert": ("bert", TEXT),
    "roberta": ("roberta", {**TEXT, "max_position_embeddings": 200}),
    "xlm-roberta": ("xlm-roberta", {**TEXT, "max_position_embeddings": 200}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}),
    "electra": ("electra", {**TEXT, "embedding_size": 16}),
    "mpnet": ("mpnet", {**TEXT, "max_position_embeddings": 200}),
    "albert": ("albert", {**TEXT, "embedding_size": 16}),
    "deberta": ("deberta", {**TEXT, **RELATIVE, "type_vocab_size": 0}),
    "deberta, c2p": ("deberta", {**TEXT, **RELATIVE, "max_relative_positions": 40, "pos_att_type": ["c2p"]}),
    "deberta-v2": ("deberta-v2", {**TEXT, **RELATIVE, **BUCKETS, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v3": ("deberta-v2", {**TEXT, **RELATIVE, **BUCKETS, "share_att_key": True}),
    "deberta-v2, absolute": ("deberta-v2", TEXT),
}


def backbone(name: str, seed: int = 0, **more: Any) -> Any:
    """An encoder of transformers, with random weights: none of them zero or one, so that none can be left out, and wide
    enough that attention isn't uniform."""
    model_type, values = ENCODERS[name]
    family = FAMILIES[model_type]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        architecture = family.architecture()
        made = architecture(architecture.config_class(**{**values, **more}), **family.arguments).eval()
        for parameter in made.parameters():
            parameter.add_(WIDTH * torch.randn_like(parameter))
        return made


def states_of_sound(theirs: Any, sound: torch.Tensor) -> torch.Tensor:
    """What transformers' own forward says of a sound alone [1, samples]: [1, frames, hidden]."""
    if theirs.config.model_type != "whisper":
        return cast(torch.Tensor, theirs(sound).last_hidden_state)
    extractor = WhisperFeatureExtractor(theirs.config.num_mel_bins)
    spectra = torch.from_numpy(extractor(sound[0].numpy(), sampling_rate=16_000)["input_features"])
    short = copy.deepcopy(theirs)
    short.config.max_source_positions = frames = sound.shape[1] // 320
    short.embed_positions = torch.nn.Embedding.from_pretrained(theirs.embed_positions.weight[:frames])
    return cast(torch.Tensor, short(spectra[:, :, : 2 * frames]).last_hidden_state)


def published(name: str, folder: Path, **saving: Any) -> Path:
    """The folder of an encoder; a text encoder's with a tokenizer. saving: of transformers' save_pretrained."""
    backbone(name).save_pretrained(folder, **saving)
    if FAMILIES[ENCODERS[name][0]].modality == "text":
        shutil.copyfile(TEXT_ENCODER / "tokenizer.json", folder / "tokenizer.json")
    return folder


def preset_file(folder: Path, names: dict[str, str], **saving: object) -> Path:
    """A preset of a user's own: encoders of transformers in folders."""
    chosen = {"image": "vit", "audio": "wav2vec2", "text": "bert", **names}
    lines = []
    for modality, name in chosen.items():
        place = published(name, folder / modality, **saving)
        lines.append(f"[encoders.{modality}]\npretrained = {json.dumps(str(place))}\n")
    path = folder / "my-own.toml"
    path.write_text("".join(lines) + "[fusion]\nlayers = 1\nheads = 2\nfeed_forward_width = 16\n")
    return path


def write_config(folder: Path, **values: object) -> None:
    """Changes values of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))
