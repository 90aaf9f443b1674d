"""Encoder families: one small class for each kind of encoder, looked up in FAMILIES by Hugging Face's `model_type`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cmt_pipeline.modality import Modality
from cmt_pipeline.presets import LAYERS, MERGED_TOKENS
from cmt_pipeline.registry import Registry

if TYPE_CHECKING:  # torch must not load with this module
    from torch import nn


@dataclass(frozen=True)
class LayerParts:
    """Names of a pre-norm layer's parts beside `attention` and `mlp`: the norms before each, and what scales each ("":
    nothing does)."""

    norm_before: str
    norm_after: str
    scale_before: str = ""
    scale_after: str = ""


class EncoderFamily(ABC):
    """A kind of encoder.

    modality: what it reads; defaults: values of its configuration where they aren't Hugging Face's own; arguments: of
    its architecture besides the configuration, such as those that leave out what no encoder needs; expects: of
    PreprocessConfig, where its files say nothing; renamed: patterns of names in published weights -> what its
    architecture has instead; beside: parts in published weights that it doesn't read, besides those of every family.

    How it is tuned: layers_in: where in the backbone its layers are, in their order; layer_decay: how much slower each
    layer learns than the one above it; untuned: parts of the backbone that stay as published even so; lora_targets:
    linear layers that LoRA adds to.

    layer_parts: what the layers of a Vision Transformer that can merge tokens (`cmt_export.token_merging`) are made of.
    """

    model_type: ClassVar[str]
    modality: ClassVar[Modality]
    defaults: ClassVar[Mapping[str, Any]] = {}
    arguments: ClassVar[Mapping[str, Any]] = {}
    expects: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    beside: ClassVar[tuple[str, ...]] = ()
    layers_in: ClassVar[str] = "encoder.layer"
    layer_decay: ClassVar[float] = 1.0
    untuned: ClassVar[tuple[str, ...]] = ()
    lora_targets: ClassVar[tuple[str, ...]] = ("query", "value")
    layer_parts: ClassVar[LayerParts | None] = None

    @abstractmethod
    def architecture(self) -> Any:
        """The class of transformers, without any head."""

    @abstractmethod
    def wrap(self, backbone: Any) -> nn.Module:
        """The encoder around a backbone: its modality's ready tensors [batch, ...] -> features [batch, tokens,
        MODEL_WIDTH] float32 and mask [batch, tokens] int64, 1 = real.

        Padding may change no feature of a real token. The backbone is the encoder's `backbone`; where it makes other
        numbers of tokens than `Sizes` has by default, `tokens` says how many of each bucket of the input.
        """

    def check(self, config: Any) -> None:  # noqa: B027  # most families can do whatever they may be asked for
        """ValueError for a configuration that it can't encode with."""

    def prefix_tokens(self, config: Any) -> int:  # noqa: ARG002  # registers are told by it
        """How many of an image's tokens come before its patches."""
        return 1

    def config(self, values: Mapping[str, Any]) -> Any:
        """Hugging Face's configuration of these values. ValueError for another family's, and for what it can't do."""
        named = values.get("model_type", self.model_type)
        if named != self.model_type:
            raise ValueError(f"got an encoder of the family {named!r}; expected one of {self.model_type!r}")
        config = self.architecture().config_class(**{**self.defaults, **values})
        self.check(config)
        if (layers := getattr(config, LAYERS, 1)) < 1:
            raise ValueError(f"{LAYERS}: got {layers}; expected 1 or more")
        check_merging(self, getattr(config, MERGED_TOKENS, 0))
        return config

    def settled(self, backbone: Any) -> Any:
        """The backbone, once it has its weights, with whatever depends on nothing but them and the contract computed;
        its configuration says so."""
        return backbone

    def random(self, values: Mapping[str, Any]) -> Any:
        """A backbone with random weights."""
        return self.settled(self.architecture()(self.config(values), **self.arguments))


FAMILIES: Registry[EncoderFamily] = Registry(
    "encoder family",
    "cmt_triton.encoder_families",
    EncoderFamily,
    {
        "vit": "cmt_export.families.vit:VIT",
        "deit": "cmt_export.families.vit:DEIT",
        "beit": "cmt_export.families.vit:BEIT",
        "swin": "cmt_export.families.swin:SWIN",
        "dinov2": "cmt_export.families.dinov2:DINOV2",
        "dinov2_with_registers": "cmt_export.families.dinov2:DINOV2_WITH_REGISTERS",
        "wav2vec2": "cmt_export.families.wav2vec2:WAV2VEC2",
        "hubert": "cmt_export.families.wav2vec2:HUBERT",
        "wavlm": "cmt_export.families.wavlm:WAVLM",
        "data2vec-audio": "cmt_export.families.data2vec:DATA2VEC_AUDIO",
        "whisper": "cmt_export.families.whisper:WHISPER",
        "bert": "cmt_export.families.bert:BERT",
        "roberta": "cmt_export.families.roberta:ROBERTA",
        "xlm-roberta": "cmt_export.families.roberta:XLM_ROBERTA",
        "distilbert": "cmt_export.families.distilbert:DISTILBERT",
        "electra": "cmt_export.families.electra:ELECTRA",
        "mpnet": "cmt_export.families.mpnet:MPNET",
        "albert": "cmt_export.families.albert:ALBERT",
        "deberta": "cmt_export.families.deberta:DEBERTA",
        "deberta-v2": "cmt_export.families.deberta:DEBERTA_V2",
    },
)


def check_merging(family: EncoderFamily, count: object) -> None:
    """ValueError for a family that can't merge so many patches a layer."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"{MERGED_TOKENS}: got {count!r}; expected how many patches each layer merges away, or 0")
    if count and family.layer_parts is None:
        able = ", ".join(name for name in FAMILIES if FAMILIES[name].layer_parts)
        raise ValueError(
            f"{MERGED_TOKENS}: an encoder of the family {family.model_type!r} merges none; expected {able}"
        )


def family_of(model_type: str, modality: Modality) -> EncoderFamily:
    """ValueError for an unknown family, and for one of another modality."""
    family = FAMILIES[model_type]
    if family.modality != modality:
        raise ValueError(f"encoder of {modality}: got {model_type!r}, which reads {family.modality}")
    return family
