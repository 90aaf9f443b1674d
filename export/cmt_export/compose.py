"""Composed checkpoints: published classifiers of one modality each, with their own heads, fused without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cmt_export.checkpoint import (
    COMPOSED,
    LAYER_WEIGHTS,
    Checkpoint,
    CheckpointConfig,
    ClassifierConfig,
    EncoderConfig,
    classifier_encoder,
)
from cmt_export.errors import CheckpointError
from cmt_export.expected_inputs import expected_inputs, tokenizer_in
from cmt_export.family import FAMILIES, EncoderFamily
from cmt_export.sources import classifier_from, folder_of, pinned, weights_digest
from cmt_pipeline.labels import DEFAULT_LABEL_SET, labels_of
from cmt_pipeline.modality import Modality, ordered
from cmt_pipeline.presets import MINILM, FusionSize
from cmt_pipeline.progress import Progress, no_progress
from cmt_pipeline.tensors import MODEL_WIDTH

if TYPE_CHECKING:
    from cmt_export.classifiers import PublishedClassifier
    from cmt_export.log_linear import Expert


OF_HEADS = ("id2label", "label2id")  # of a configuration of transformers


@dataclass(frozen=True)
class ComposeOptions:
    """sources: a hub's id, pinned by `@REVISION`, or a folder, by modality; names: of a classifier's classes in output
    order, where its own configuration has none; synonyms: name -> label, before the project's own table."""

    sources: Mapping[Modality, str]
    label_set: str = DEFAULT_LABEL_SET
    names: Mapping[Modality, Sequence[str]] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered(self.sources)
        labels_of(self.label_set)
        if unknown := sorted(self.names.keys() - self.sources.keys()):
            raise ValueError(f"got names for {unknown[0]}, and no classifier for it")


@dataclass(frozen=True)
class _Part:
    """One classifier as it becomes an encoder."""

    published: PublishedClassifier
    family: EncoderFamily
    expert: Expert
    config: EncoderConfig
    encoder: Any
    backbone_config: Any


def compose(options: ComposeOptions, progress: Progress = no_progress) -> Checkpoint:
    """The classifiers as one checkpoint, not calibrated. Raises CheckpointError for what can't be composed."""
    from cmt_export.log_linear import LogLinearFusion
    from cmt_export.model import CrossModalTransformer

    labels, modalities = labels_of(options.label_set), ordered(options.sources)
    parts: dict[Modality, _Part] = {}
    for done, m in enumerate(modalities):
        progress(f"{m}: {options.sources[m]}", done / len(modalities))
        parts[m] = _part(m, options, labels)
    text = parts.get("text")
    tokenizer = tokenizer_in(text.published.folder if text else folder_of(MINILM))
    expected = expected_inputs(
        {m: part.family for m, part in parts.items()},
        {m: part.published.folder for m, part in parts.items()},
        tokenizer,
        text.backbone_config if text else None,
    )
    config = CheckpointConfig(
        preset=COMPOSED,
        label_set=options.label_set,
        labels=labels,
        trained=True,
        encoders={m: part.config for m, part in parts.items()},
        fusion=FusionSize(),
        preprocess=replace(expected, face="auto" if "image" in parts else "never"),  # they were trained on crops
        model=COMPOSED,
    )
    fusion = LogLinearFusion({m: part.expert for m, part in parts.items()}, len(labels))
    model = CrossModalTransformer({m: part.encoder for m, part in parts.items()}, fusion)
    return Checkpoint(config, model.eval(), tokenizer)


def meanings(checkpoint: Checkpoint) -> dict[Modality, dict[str, str | None]]:
    """What each classifier's names mean, by modality: a label, a dimension, or None for no place."""
    from cmt_export.log_linear import DIMENSIONS

    found: dict[Modality, dict[str, str | None]] = {}
    for m, encoder in checkpoint.config.encoders.items():
        head = encoder.classifier
        if head is not None:
            targets = DIMENSIONS if head.kind == "dimensional" else checkpoint.config.labels
            meant = [targets[place] if place >= 0 else None for place in head.places]
            found[m] = dict(zip(head.names, meant, strict=True))
    return found


def _part(modality: Modality, options: ComposeOptions, labels: Sequence[str]) -> _Part:
    from cmt_export.classifiers import expert_of, read_classifier
    from cmt_export.heads import layout_of, weights_of

    source = options.sources[modality]
    folder = folder_of(source)
    published = read_classifier(modality, folder, options.names.get(modality, ()))
    expert = expert_of(published, labels, options.synonyms)
    family = FAMILIES[published.model_type]
    full = classifier_from(family, _architecture(published.architecture), folder)
    layout = layout_of(published.architecture, full.config)
    weights = {f"head.{name}": tensor for name, tensor in weights_of(full, layout).items()}
    if (outputs := len(weights["head.last.bias"])) != len(published.names) or outputs > MODEL_WIDTH:
        raise CheckpointError(
            f"{folder} has {outputs} outputs and the names {', '.join(published.names[:12])} ({len(published.names)}); "
            f"expected one for each, at most {MODEL_WIDTH}"
        )
    if getattr(full.config, "use_weighted_layer_sum", False):
        weights[LAYER_WEIGHTS] = full.layer_weights.detach()
    head = ClassifierConfig(published.architecture, published.names, published.kind, expert.places, published.licence)
    backbone = family.settled(_backbone(family, full))
    return _Part(
        published=published,
        family=family,
        expert=expert,
        config=EncoderConfig(
            config={key: value for key, value in backbone.config.to_diff_dict().items() if key not in OF_HEADS},
            weights_from=pinned(source, folder),
            weights_sha256=weights_digest(folder),
            classifier=head,
        ),
        encoder=classifier_encoder(family, backbone, head, weights),
        backbone_config=backbone.config,
    )


def _architecture(name: str) -> Any:
    import transformers

    from cmt_export.heads import speech_architecture

    if "ForSpeechClassification" in name:
        return speech_architecture(name)
    if name == "BertForMultiLabelClassification":  # a class of its authors, with the layers of this one
        name = "BertForSequenceClassification"
    return getattr(transformers, name)


def _backbone(family: EncoderFamily, full: Any) -> Any:
    """The encoder inside a model with a head, without the parts that an encoder has none of."""
    from transformers import PreTrainedModel

    backbone: PreTrainedModel = full.base_model
    pooled = getattr(backbone, "pooler", None)
    if pooled is not None and not family.arguments.get("add_pooling_layer", True):
        backbone.pooler = None
    return backbone
