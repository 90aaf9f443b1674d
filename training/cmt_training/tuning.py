"""What of published encoders is trained, and how fast each of their layers learns.

    frozen    nothing: they run once over the data (`cmt_training.frozen`)
    last-N    their last N layers
    full      all but what their family keeps as published, such as Wav2Vec2's convolutions
    lora      small matrices beside their attention's (Hu et al. 2022, arXiv 2106.09685), in the end merged into it

Layers below learn slower, by the family's factor or `layer_decay`. Encoders of sound that know a mask hear with
stretches of it in time (SpecAugment, Park et al. 2019, arXiv 1904.08779, as Wav2Vec2's own recipe).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.checkpoint import Checkpoint
from cmt_export.family import EncoderFamily, family_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_training.options import FROZEN, FULL, LAST, LORA, TrainOptions
from cmt_training.trainee import modalities_of

LORA_RANK, LORA_ALPHA, LORA_DROPOUT = 8, 16, 0.05
MASKED_SHARE, MASKED_FRAMES = 0.05, 10  # of all frames, in stretches of so many


def published(checkpoint: Checkpoint, model: str) -> list[Modality]:
    """Whose encoders were published, of those that a model reads."""
    encoders, reads = checkpoint.config.encoders, modalities_of(model)
    return [m for m, read in zip(MODALITIES, reads, strict=True) if read and m in encoders and encoders[m].weights_from]


def tune_published(checkpoint: Checkpoint, options: TrainOptions) -> dict[str, float]:
    """Readies published encoders: what isn't trained of them asks for no gradient.

    Returns the names of the model's parameters that are tuned, each with its share of the learning rate. ValueError for
    more layers than there are.
    """
    shares: dict[str, float] = {}
    for m in published(checkpoint, options.model):
        backbone: Any = checkpoint.model.encoders[m].backbone
        family = family_of(str(checkpoint.config.encoders[m].config["model_type"]), m)
        found = _tuned(family, backbone, options)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in found)
        if found and getattr(backbone, "masked_spec_embed", None) is not None:
            backbone.feature_projection.register_forward_hook(partial(masked_in_time, backbone))
        if found and options.gradient_checkpointing and backbone.supports_gradient_checkpointing:
            backbone.config.use_cache = False  # of decoders; with it, transformers warns
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        shares |= {f"encoders.{m}.backbone.{name}": share for name, share in found.items()}
    return shares


def _tuned(family: EncoderFamily, backbone: nn.Module, options: TrainOptions) -> dict[str, float]:
    """Parameters of a backbone that are trained -> share of the learning rate."""
    if options.tune == FROZEN:
        return {}
    if options.tune == LORA:
        _add_lora(backbone, family.lora_targets, options.seed)
        return {name: 1.0 for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    layers = list(backbone.get_submodule(family.layers_in).children())
    depths = _depths(backbone, layers)
    decay = family.layer_decay if options.layer_decay is None else options.layer_decay
    able = [n for n, p in backbone.named_parameters() if p.requires_grad and not n.startswith(family.untuned)]
    if options.tune == FULL:
        return {name: decay ** depths[name] for name in able}
    count = int(options.tune.removeprefix(LAST))
    if count > len(layers):
        raise ValueError(f"tune: got {options.tune}; expected {LAST}{len(layers)} at most: there are no more layers")
    last = {id(parameter) for layer in layers[-count:] for parameter in layer.parameters()}
    parameters = dict(backbone.named_parameters())
    return {name: decay ** depths[name] for name in able if id(parameters[name]) in last}


def _depths(backbone: nn.Module, layers: Sequence[nn.Module]) -> dict[str, int]:
    """How many layers lie above each parameter; one before all of them counts as one layer more."""
    of_layer = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    depths, depth = {}, len(layers)
    for name, parameter in backbone.named_parameters():
        if id(parameter) in of_layer:
            depth = len(layers) - 1 - of_layer[id(parameter)]
        depths[name] = depth
    return depths


def _add_lora(backbone: nn.Module, targets: Sequence[str], seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=LORA_DROPOUT, target_modules=list(targets))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone)


def merge_lora(model: nn.Module) -> None:
    """Writes what LoRA learnt into the layers that it stands beside, and takes it away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            module.merge()
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def masked_in_time(backbone: Any, _module: nn.Module, _inputs: object, output: Any) -> Any:
    """After a feature projection: some stretches of frames [batch, frames, hidden] become the encoder's mask."""
    if not backbone.training:
        return output
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    starts = torch.rand(hidden.shape[:2], device=hidden.device) < MASKED_SHARE / MASKED_FRAMES
    spread = functional.pad(starts.float()[:, None], (MASKED_FRAMES - 1, 0))
    masked = functional.max_pool1d(spread, MASKED_FRAMES, stride=1)[:, 0, :, None] > 0  # [batch, frames, 1]
    hidden = torch.where(masked, backbone.masked_spec_embed.to(hidden.dtype), hidden)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
