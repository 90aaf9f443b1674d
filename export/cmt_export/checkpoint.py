"""Checkpoints: a folder with config.json, model.safetensors and tokenizer.json.

The weights of an encoder that is used as it was published and never trained further stay out of model.safetensors:
config.json names their source and digest instead, and loading checks it. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cmt_engine.engine import sha256_of
from cmt_export.errors import CheckpointError
from cmt_export.expected_inputs import expected_inputs, tokenizer_in
from cmt_export.family import EncoderFamily, check_merging, family_of
from cmt_export.sources import (
    CONFIG_FILE,
    PACKAGE_PREFIX,
    WEIGHTS_FILE,
    backbone_from,
    folder_of,
    model_type_of,
    pinned,
    weights_digest,
)
from cmt_pipeline.labels import checked_labels, labels_of
from cmt_pipeline.modality import MODALITIES, Modality, ordered
from cmt_pipeline.preprocess import TOKENIZER_FILE, PreprocessConfig
from cmt_pipeline.presets import MERGED_TOKENS, MINILM, EncoderPreset, FusionSize, Preset, less_work_of, preset_of
from cmt_pipeline.tensors import MODEL_WIDTH

if TYPE_CHECKING:
    from torch import nn

    from cmt_export.model import CrossModalTransformer

Made = TypeVar("Made")

FORMAT = 4
COMPOSED = "composed"
LAYER_WEIGHTS = "encoder.layer_weights"
#: 1: without the labels, which then are those of the set of that name; 1 to 3: the fusion of `cmt` had no evidence of
#: its own of each modality, and isn't read.
FORMATS = (1, 2, 3, FORMAT)
REGISTERED_TWICE = 2  # parametrized weights are, as they are and as what they are made of


@dataclass(frozen=True)
class ClassifierConfig:
    """A published head. architecture: the class of transformers that has it; names: its own of its classes; kind and
    places: as `cmt_export.log_linear.Expert` has them; licence: as its card says it."""

    architecture: str
    names: tuple[str, ...]
    kind: Literal["softmax", "sigmoid", "dimensional"]
    places: tuple[int, ...]
    licence: str = ""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ClassifierConfig:
        return cls(**{**values, "names": tuple(map(str, values["names"])), "places": tuple(map(int, values["places"]))})


@dataclass(frozen=True)
class EncoderConfig:
    """config: Hugging Face's own; weights_from: where published weights come from (None: in model.safetensors);
    classifier: of a composed model, the published head that goes with them."""

    config: Mapping[str, Any]
    weights_from: str | None = None
    weights_sha256: str | None = None
    classifier: ClassifierConfig | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """config.json of a checkpoint. `trained` is False while any weight that decides an answer is random.

    labels: in output order, so that whoever loads it need not know the set; encoders: of the modalities that it reads;
    model: `cmt`, the baseline whose fusion stands in its place (`cmt_export.baselines`), or `composed`.
    """

    preset: str
    label_set: str
    labels: tuple[str, ...]
    trained: bool
    encoders: Mapping[Modality, EncoderConfig]
    fusion: FusionSize
    preprocess: PreprocessConfig
    model: str = "cmt"

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CheckpointConfig:
        try:
            values = json.loads(text)
            if (got := values.pop("format", None)) not in FORMATS:
                raise CheckpointError(f"got a checkpoint of format {got}; this version reads 1 to {FORMAT}")
            values["labels"] = checked_labels(values["labels"]) if got > 1 else labels_of(values["label_set"])
            values["encoders"] = {m: _encoder_config(values["encoders"][m]) for m in ordered(values["encoders"])}
            values["fusion"] = FusionSize(**values["fusion"])
            values["preprocess"] = PreprocessConfig.from_json(json.dumps(values["preprocess"]))
            found = cls(**values)
            if got < FORMAT and found.model == "cmt":
                raise CheckpointError(
                    f"got a cross-modal checkpoint of format {got}; this version reads those of format {FORMAT}: train "
                    "it again (what was exported of it is served as before)"
                )
            return found
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"got a {CONFIG_FILE} that is no checkpoint's: {error!r}") from error

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """How the names of weights begin that stay where they were published."""
        return tuple(
            f"encoders.{m}.encoder.backbone." if encoder.classifier else f"encoders.{m}.backbone."
            for m, encoder in self.encoders.items()
            if encoder.weights_from
        )


def _encoder_config(values: Mapping[str, Any]) -> EncoderConfig:
    """TypeError, KeyError and ValueError for what is none."""
    told = values.get("classifier")
    return EncoderConfig(**{**values, "classifier": ClassifierConfig.from_values(told) if told else None})


@dataclass(frozen=True)
class Checkpoint:
    """A model in memory with its configuration and the tokenizer its text encoder was made with."""

    config: CheckpointConfig
    model: CrossModalTransformer
    tokenizer: Path


def checkpoint_from_preset(
    name: str, label_set: str, *, model: str = "cmt", random_weights: bool = False, seed: int = 0
) -> Checkpoint:
    """An untrained checkpoint: published encoder weights where the preset names them, the rest seeded random.

    model: `cmt` or a baseline; random_weights: replaces published weights that would come from a hub by random ones
    (sizes, and so times, stay). Raises CheckpointError when published weights can't be had.
    """
    import torch

    from cmt_export.baselines import fusion_of
    from cmt_export.model import CrossModalTransformer

    preset, labels = preset_of(name), labels_of(label_set)
    folders = {m: _published(preset.encoders[m], random_weights) for m in MODALITIES}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        families = {m: family_of(_model_type(preset.encoders[m], folders[m]), m) for m in MODALITIES}
        backbones = {m: _backbone(families[m], preset.encoders[m], folders[m]) for m in MODALITIES}
        encoders = {m: families[m].wrap(backbone) for m, (backbone, _) in backbones.items()}
        fusion = fusion_of(model, preset.fusion, len(labels))
    text_config: Any = backbones["text"][0].config
    tokenizer = _tokenizer_of(preset, folders["text"])
    config = CheckpointConfig(
        preset=preset.name,
        label_set=label_set,
        labels=labels,
        trained=False,
        encoders={m: encoder for m, (_, encoder) in backbones.items()},
        fusion=preset.fusion,
        preprocess=expected_inputs(families, folders, tokenizer, text_config),
        model=model,
    )
    made = CrossModalTransformer(encoders, fusion).eval()
    return Checkpoint(config, made, tokenizer)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, *, half: bool = False) -> None:
    """Writes the checkpoint beside `folder` and then moves it there whole. FileExistsError if `folder` exists.

    half: keeps matrices as fp16, and so in half the space; loading makes them fp32 again.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder")
    elsewhere = checkpoint.config.elsewhere
    state = checkpoint.model.state_dict()
    kept = {
        name: (tensor.half() if half and tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in state.items()
        if not name.startswith(elsewhere or ("\0",))
    }
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(kept, draft / WEIGHTS_FILE)
    shutil.copyfile(checkpoint.tokenizer, draft / TOKENIZER_FILE)
    (draft / CONFIG_FILE).write_text(checkpoint.config.to_json())
    draft.rename(folder)


def load_checkpoint(folder: Path, sha256: str | None = None) -> Checkpoint:
    """A saved checkpoint. sha256: what its model.safetensors must have. Raises CheckpointError."""
    from safetensors.torch import load_file

    from cmt_export.model import CrossModalTransformer

    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no whole checkpoint: it lacks {', '.join(missing)}")
    if sha256 is not None:
        _check_digest(folder / WEIGHTS_FILE, sha256)
    config = _read_config(folder / CONFIG_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
        size = _Size(len(weights), sum(tensor.numel() for tensor in weights.values()))
        encoders = {m: _load_encoder(m, encoder, size, weights) for m, encoder in config.encoders.items()}
        fusion = _no_larger(lambda: _fusion(config), size)
        model = CrossModalTransformer(encoders, fusion)
        loaded = model.load_state_dict(weights, strict=False)
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(
            f"{folder} can't be read: a package that it needs doesn't import here: {error}"
        ) from error
    except Exception as error:  # of torch and transformers many kinds, on values that fit neither them nor each other
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is damaged or doesn't fit its config.json: {error}") from error
    elsewhere = config.elsewhere
    lacking = [key for key in loaded.missing_keys if not key.startswith(elsewhere or ("\0",))]
    if lacking or loaded.unexpected_keys:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} doesn't fit its config.json: lacks {lacking[:3]}, "
            f"has unexpected {loaded.unexpected_keys[:3]}"
        )
    return Checkpoint(config, model.eval(), folder / TOKENIZER_FILE)


def merging_tokens(checkpoint: Checkpoint, count: int) -> Checkpoint:
    """The checkpoint, whose image encoder merges so many patches away in each layer (`cmt_export.token_merging`).

    ValueError where it has none that can.
    """
    if "image" not in checkpoint.config.encoders:
        raise ValueError(f"{MERGED_TOKENS}: got {count}, of a model that reads no images")
    encoder = checkpoint.config.encoders["image"]
    check_merging(family_of(str(encoder.config.get("model_type")), "image"), count)
    module: Any = checkpoint.model.encoders["image"]
    setattr(getattr(module, "encoder", module).backbone.config, MERGED_TOKENS, count)
    merging = replace(encoder, config={**encoder.config, MERGED_TOKENS: count})
    encoders = {**checkpoint.config.encoders, "image": merging}
    return replace(checkpoint, config=replace(checkpoint.config, encoders=encoders))


def _published(preset: EncoderPreset, random_weights: bool) -> Path | None:
    """The folder of an encoder's published weights; None where they are to be random."""
    source = preset.pretrained
    if source is None or (random_weights and not source.startswith(PACKAGE_PREFIX)):
        return None
    return folder_of(source)


def _model_type(preset: EncoderPreset, folder: Path | None) -> str:
    return preset.model_type or (model_type_of(folder) if folder else "")


def _backbone(family: EncoderFamily, preset: EncoderPreset, folder: Path | None) -> tuple[nn.Module, EncoderConfig]:
    """folder: that of the published weights; None for random ones."""
    if folder is None:
        backbone = family.random(preset.config)
        return backbone, EncoderConfig(config=backbone.config.to_diff_dict())
    less = less_work_of(preset.config)
    backbone = backbone_from(family, folder, less)
    return backbone, EncoderConfig(
        config={**backbone.config.to_diff_dict(), **less},
        weights_from=pinned(preset.pretrained or "", folder),
        weights_sha256=weights_digest(folder),
    )


def _read_config(file: Path) -> CheckpointConfig:
    try:
        return CheckpointConfig.from_json(file.read_text())
    except (UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no checkpoint's: {error}") from error


@dataclass(frozen=True)
class _Size:
    """What a file of weights holds."""

    tensors: int
    weights: int


def _no_larger(make: Callable[[], Made], most: _Size) -> Made:
    """What `make` makes. CheckpointError for more than the file holds: as soon as the first module is made that its
    tensors can't fill, and before any takes memory."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    tensors, weights = REGISTERED_TWICE * most.tensors, REGISTERED_TWICE * most.weights

    def count(_module: object, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, weights
        tensors -= parameter is not None
        weights -= parameter.numel() if parameter is not None else 0
        if tensors < 0 or weights < 0:
            raise CheckpointError(
                f"{CONFIG_FILE} describes a larger model than the {most.weights} weights, in {most.tensors} tensors, "
                f"of {WEIGHTS_FILE}"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            make()
    finally:
        hook.remove()
    return make()


def _fusion(config: CheckpointConfig) -> Any:
    from cmt_export.baselines import fusion_of
    from cmt_export.log_linear import Expert, LogLinearFusion

    heads = {m: encoder.classifier for m, encoder in config.encoders.items() if encoder.classifier}
    if config.model != COMPOSED:
        return fusion_of(config.model, config.fusion, len(config.labels))
    return LogLinearFusion({m: Expert(head.kind, head.places) for m, head in heads.items()}, len(config.labels))


def _load_encoder(modality: Modality, encoder: EncoderConfig, most: _Size, weights: Mapping[str, Any]) -> nn.Module:
    try:
        family = family_of(str(encoder.config.get("model_type")), modality)
        if encoder.weights_from is None:
            return family.wrap(_no_larger(lambda: family.random(encoder.config), most))
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's encoder of {modality} can't be made: {error}") from error
    folder = folder_of(encoder.weights_from)
    if encoder.weights_sha256 not in (None, got := weights_digest(folder)):
        raise CheckpointError(
            f"the weights in {folder} have sha256 {got}; expected {encoder.weights_sha256}: they aren't those that the "
            "checkpoint was made with"
        )
    backbone = backbone_from(family, folder, less_work_of(encoder.config))
    if encoder.classifier is None:
        return family.wrap(backbone)
    return classifier_encoder(family, backbone, encoder.classifier, weights_below(weights, f"encoders.{modality}."))


def weights_below(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def classifier_encoder(
    family: EncoderFamily, backbone: Any, classifier: ClassifierConfig, weights: Mapping[str, Any]
) -> nn.Module:
    """An encoder with its head. weights: `head.*`, and `encoder.layer_weights` where the head reads all layers."""
    from torch import nn

    from cmt_export.heads import ClassifierEncoder, Head, encoder_for, layout_of

    layout = layout_of(classifier.architecture, backbone.config)
    epsilon = getattr(backbone.config, "layer_norm_eps", 1e-12)
    encoder = encoder_for(layout, family, backbone)
    if LAYER_WEIGHTS in weights:
        encoder.layer_weights = nn.Parameter(weights[LAYER_WEIGHTS])
    return ClassifierEncoder(encoder, Head(layout, weights_below(weights, "head."), epsilon), MODEL_WIDTH)


def _tokenizer_of(preset: Preset, folder: Path | None) -> Path:
    """tokenizer.json of the text encoder; MiniLM's, which is BERT-base's vocabulary, when its weights are random."""
    named = preset.encoders["text"].tokenizer
    return tokenizer_in(folder_of(named) if named else folder or folder_of(MINILM))


def _check_digest(path: Path, expected: str) -> None:
    if (got := sha256_of(path)) != expected:
        raise CheckpointError(f"{path} has sha256 {got}; expected {expected}: it isn't the file that was named")
