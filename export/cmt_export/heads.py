"""Published classification heads: what turns an encoder's states into logits, for each architecture of transformers.

A head is at most five steps, each of which an architecture may leave out: a linear layer for every token, a pool, a
layer norm, a linear layer with an activation, and the last linear layer. HEADS says which an architecture has, and
under which names its published weights hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from cmt_export.encoders import ImageEncoder

Pool = Callable[[Tensor, Tensor], Tensor]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None].to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


#: States [batch, tokens, hidden] and mask [batch, tokens] -> [batch, wide].
POOLS: Mapping[str, Pool] = {
    "first": lambda states, _: states[:, 0],
    "first two": lambda states, _: states[:, :2].flatten(1),
    "mean": _mean,
    "mean but the first": lambda states, _: states[:, 1:].mean(dim=1),
    "first and mean": lambda states, _: torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=1),
}


@dataclass(frozen=True)
class HeadLayout:
    """The steps of a head: a pool's name, an activation's, and of the others the names that published weights have for
    them, "" for one that isn't there; `{base}` stands for the encoder's own prefix. last: several are averaged, each
    over its part of what was pooled."""

    pool: str
    project: str = ""
    norm: str = ""
    dense: str = ""
    activation: str = "tanh"
    last: tuple[str, ...] = ("classifier",)


_AUDIO = HeadLayout("mean", project="projector")
_SPEECH = HeadLayout("mean", dense="classifier.dense", last=("classifier.out_proj",))
_DENSE = HeadLayout("first", dense="classifier.dense", last=("classifier.out_proj",))
_POOLED = HeadLayout("first", dense="{base}.pooler.dense")

#: By the name of the class that a configuration's `architectures` gives.
HEADS: Mapping[str, HeadLayout] = {
    "ViTForImageClassification": HeadLayout("first"),
    "DeiTForImageClassification": HeadLayout("first"),
    "DeiTForImageClassificationWithTeacher": HeadLayout(
        "first two", last=("cls_classifier", "distillation_classifier")
    ),
    "BeitForImageClassification": HeadLayout("mean but the first", norm="{base}.pooler.layernorm"),
    "SwinForImageClassification": HeadLayout("mean"),
    "Dinov2ForImageClassification": HeadLayout("first and mean"),
    "Dinov2WithRegistersForImageClassification": HeadLayout("first and mean"),
    "Wav2Vec2ForSequenceClassification": _AUDIO,
    "HubertForSequenceClassification": _AUDIO,
    "WavLMForSequenceClassification": _AUDIO,
    "Data2VecAudioForSequenceClassification": _AUDIO,
    "Wav2Vec2ForSpeechClassification": _SPEECH,
    "HubertForSpeechClassification": _SPEECH,
    "BertForSequenceClassification": _POOLED,
    "BertForMultiLabelClassification": _POOLED,
    "RobertaForSequenceClassification": _DENSE,
    "XLMRobertaForSequenceClassification": _DENSE,
    "DistilBertForSequenceClassification": HeadLayout("first", dense="pre_classifier", activation="relu"),
    "ElectraForSequenceClassification": replace(_DENSE, activation="gelu"),
    "MPNetForSequenceClassification": _DENSE,
    "AlbertForSequenceClassification": replace(_POOLED, dense="{base}.pooler"),
    "DebertaForSequenceClassification": replace(_POOLED, dense="pooler.dense", activation="gelu"),
    "DebertaV2ForSequenceClassification": replace(_POOLED, dense="pooler.dense", activation="gelu"),
}


def layout_of(architecture: str, config: Any) -> HeadLayout:
    """The layout of a configuration's head. KeyError for an architecture that isn't known."""
    layout = HEADS[architecture]
    if architecture == "BeitForImageClassification" and not config.use_mean_pooling:
        return HeadLayout("first")
    if architecture.startswith("Deberta"):
        return replace(layout, activation=config.pooler_hidden_act)
    return layout


class Head(nn.Module):
    """States [batch, tokens, hidden] and mask [batch, tokens] -> logits [batch, classes]."""

    def __init__(self, layout: HeadLayout, weights: Mapping[str, Tensor], epsilon: float = 1e-12) -> None:
        """weights: of its steps (`last.weight`, `dense.bias`, …), as `weights_of` finds them. KeyError without them."""
        super().__init__()
        self.pool = POOLS[layout.pool]
        self.activation = ACT2FN[layout.activation]
        self.project = _linear(weights, "project") if layout.project else nn.Identity()
        self.norm = nn.LayerNorm(weights["norm.weight"].shape[0], eps=epsilon) if layout.norm else nn.Identity()
        self.dense = _linear(weights, "dense") if layout.dense else None
        self.last = _linear(weights, "last")
        self.load_state_dict(dict(weights))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        pooled = self.norm(self.pool(self.project(states), mask))
        if self.dense is not None:
            pooled = self.activation(self.dense(pooled))
        logits: Tensor = self.last(pooled)
        return logits


def weights_of(full: Any, layout: HeadLayout) -> dict[str, Tensor]:
    """A head's weights out of a model of transformers that has them, under the names of its steps."""
    state = full.state_dict()
    found: dict[str, Tensor] = {}
    for step, name in (("project", layout.project), ("norm", layout.norm), ("dense", layout.dense)):
        if name:
            named = name.format(base=full.base_model_prefix)
            found |= {f"{step}.{kind}": state[f"{named}.{kind}"] for kind in ("weight", "bias")}
    share = len(layout.last)
    found["last.weight"] = torch.cat([state[f"{name}.weight"] for name in layout.last], dim=1) / share
    found["last.bias"] = torch.stack([state[f"{name}.bias"] for name in layout.last]).sum(dim=0) / share
    return found


def _linear(weights: Mapping[str, Tensor], step: str) -> nn.Linear:
    rows, columns = weights[f"{step}.weight"].shape
    return nn.Linear(columns, rows)


class ClassifierEncoder(nn.Module):
    """An encoder with its published head, in an encoder's place: its features are one token, which holds the head's
    logits in its first channels and zeros in the others."""

    tokens = (1,)

    def __init__(self, encoder: Any, head: Head, width: int) -> None:
        super().__init__()
        encoder.projection = nn.Identity()
        self.encoder = encoder
        self.head = head
        self.width = width

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Ready tensors [batch, ...] -> features [batch, 1, width] and mask [batch, 1], all 1."""
        logits = self.head(*self.encoder(*inputs))
        padded = nn.functional.pad(logits, (0, self.width - logits.shape[1]))
        return padded[:, None], torch.ones_like(logits[:, :1]).to(torch.int64)


def encoder_for(layout: HeadLayout, family: Any, backbone: Any) -> Any:
    """The encoder that a head reads: the family's, or one that keeps the token of distillation."""
    return ImageEncoder(backbone) if layout.pool == "first two" else family.wrap(backbone)


def speech_architecture(name: str) -> Any:
    """The class behind `Wav2Vec2ForSpeechClassification` and `HubertForSpeechClassification`, which is in no library:
    the one that their authors' scripts share (a mean over frames, dense, tanh, out_proj)."""
    from transformers import HubertModel, HubertPreTrainedModel, Wav2Vec2Model, Wav2Vec2PreTrainedModel

    base, kind, prefix = {
        "Wav2Vec2ForSpeechClassification": (Wav2Vec2PreTrainedModel, Wav2Vec2Model, "wav2vec2"),
        "HubertForSpeechClassification": (HubertPreTrainedModel, HubertModel, "hubert"),
    }[name]

    class SpeechClassification(base):  # type: ignore[valid-type,misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(self, prefix, kind(config))
            width = config.hidden_size
            steps = {"dense": nn.Linear(width, width), "out_proj": nn.Linear(width, config.num_labels)}
            self.classifier = nn.ModuleDict(steps)
            self.post_init()

    return SpeechClassification
