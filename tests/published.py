"""Folders as Hugging Face's hub holds them, made by transformers itself: small random encoders of every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from cmt_export.family import FAMILIES
from tiny_model import TEXT_ENCODER

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = json.loads((TEXT_ENCODER / "config.json").read_text())["vocab_size"]
TEXT = {**SMALL, "vocab_size": VOCABULARY, "pad_token_id": 0}
AUDIO = {**SMALL, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LAYER_NORM = {**AUDIO, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
#: Name -> family and what makes it small.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", SMALL),
    "deit": ("deit", SMALL),
    "beit": ("beit", SMALL),
    "wav2vec2": ("wav2vec2", AUDIO),
    "wav2vec2, layer norm": ("wav2vec2", LAYER_NORM),
    "hubert": ("hubert", AUDIO),
    "hubert, layer norm": ("hubert", LAYER_NORM),
    "bert": ("bert", TEXT),
    "roberta": ("roberta", {**TEXT, "max_position_embeddings": 200}),
    "xlm-roberta": ("xlm-roberta", {**TEXT, "max_position_embeddings": 200}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}),
    "electra": ("electra", {**TEXT, "embedding_size": 16}),
    "mpnet": ("mpnet", {**TEXT, "max_position_embeddings": 200}),
    "albert": ("albert", {**TEXT, "embedding_size": 16}),
}


def backbone(name: str, seed: int = 0, **more: Any) -> Any:
    """An encoder of transformers, with random weights."""
    model_type, values = ENCODERS[name]
    family = FAMILIES[model_type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        architecture = family.architecture()
        return architecture(architecture.config_class(**{**values, **more}), **family.arguments).eval()


def published(name: str, folder: Path, **saving: Any) -> Path:
    """The folder of an encoder; a text encoder's with a tokenizer. saving: of transformers' save_pretrained."""
    backbone(name).save_pretrained(folder, **saving)
    if FAMILIES[ENCODERS[name][0]].modality == "text":
        shutil.copyfile(TEXT_ENCODER / "tokenizer.json", folder / "tokenizer.json")
    return folder
