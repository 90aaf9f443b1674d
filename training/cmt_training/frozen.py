"""Published encoders that stay as they are: run once over a data set; training learns what comes after them.

The text encoder's frozen layers are `cmt_training.layer_cache`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmt_export.checkpoint import Checkpoint
from cmt_export.encoders import Features
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.progress import Progress
from cmt_pipeline.stages import READY
from cmt_training.batches import Batch, Reader, Source, raw_sources
from cmt_training.encoded import encoded_sources, given_encoders
from cmt_training.prepare import Prepared

CPU = torch.device("cpu")
BF16_FEATURES = ("avx512_bf16", "amx_bf16")


def fast_precision() -> torch.dtype:
    """bf16 where this machine's CPU multiplies it faster than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(name) for name in BF16_FEATURES) else torch.float32


class Projected(nn.Module):
    """Stands for an encoder whose backbone was run already: takes its tokens, and projects them as the encoder does."""

    def __init__(self, given: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.given, self.projection = given, projection

    def forward(self, *inputs: Tensor) -> Features:
        tokens, mask = self.given(*inputs)
        return self.projection(tokens), mask


def frozen_modalities(checkpoint: Checkpoint) -> list[Modality]:
    """Whose encoders, but for the text's, are used as they were published."""
    encoders = checkpoint.config.encoders
    return [m for m in MODALITIES if m != "text" and m in encoders and encoders[m].weights_from is not None]


def frozen_sources(
    model: CrossModalTransformer,
    modalities: Sequence[Modality],
    prepared: Prepared,
    precision: torch.dtype,
    progress: Progress,
    device: torch.device = CPU,
) -> dict[Modality, Source]:
    """Sources of what the backbones of these modalities make of every item, kept beside the prepared data.

    precision: of images; sounds stay in fp32, as spectra of quiet ones need it.
    """
    sources: dict[Modality, Source] = {}
    reader = Reader(prepared, raw_sources(prepared))
    for m in modalities:
        chosen = precision if m == "image" else torch.float32
        encoder = model.encoders[m].to(device)
        folder = prepared.folder / f"frozen-{m}-{_digest(encoder, chosen)[:16]}"
        sources |= encoded_sources(folder, reader, prepared, _run_of(encoder, m, chosen, device), [m], progress)
        encoder.to(CPU)
    return sources


def without_backbones(model: CrossModalTransformer, modalities: Sequence[Modality]) -> Callable[[], None]:
    """Puts Projected in the place of encoders; what it returns puts them back."""
    whole = {m: model.encoders[m] for m in modalities}
    given = given_encoders()
    for m, encoder in whole.items():
        model.encoders[m] = Projected(given[m], cast(nn.Module, encoder.projection))

    def restore() -> None:
        for m, encoder in whole.items():
            model.encoders[m] = encoder

    return restore


def _run_of(
    encoder: nn.Module, modality: Modality, precision: torch.dtype, device: torch.device
) -> Callable[[Batch], dict[Modality, tuple[Tensor, Tensor]]]:
    """What stands before the projection, and the mask."""

    def run(batch: Batch) -> dict[Modality, tuple[Tensor, Tensor]]:
        seen: list[Tensor] = []
        projection = cast(Any, encoder).projection
        hook = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                inputs = (batch.inputs[spec.name].to(device) for spec in READY[modality])
                _, mask = encoder.eval()(*inputs)
        finally:
            hook.remove()
        return {modality: (seen[0].float().to(CPU), mask.to(CPU))}

    return run


def _digest(encoder: nn.Module, precision: torch.dtype) -> str:
    digest = hashlib.sha256(f"{type(encoder).__name__} {precision}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if not name.startswith("projection."):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
