"""Published encoders that stay as they are: run once over a data set; training learns what comes after them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmt_export.attention import Pool
from cmt_export.baselines import SingleFusion
from cmt_export.encoders import Features
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.presets import MERGED_TOKENS
from cmt_pipeline.progress import Progress
from cmt_pipeline.stages import READY
from cmt_training.batches import Batch, Reader, raw_sources
from cmt_training.encoded import Encoded, encoded_sources, given_encoders
from cmt_training.prepare import Item, Prepared

CPU = torch.device("cpu")
EVEN = 0.05  # of the usual deviation of a pool's scores
BF16_FEATURES = ("avx512_bf16", "amx_bf16")


def fast_precision() -> torch.dtype:
    """bf16 where this machine's CPU multiplies it faster than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(name) for name in BF16_FEATURES) else torch.float32


class Projected(nn.Module):
    """Stands for an encoder whose backbone was run already: takes its tokens, and projects them as the encoder does.

    mean, deviation [hidden]: of tokens, which the projection meets standardised: some of what published encoders say is
    a hundred times as large as the rest. `fold` lets it take them as they are.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, given: nn.Module, projection: nn.Linear, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.given, self.projection = given, projection
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, *inputs: Tensor) -> Features:
        tokens, mask = self.given(*inputs)
        return self.projection((tokens - self.mean) / self.deviation), mask

    @torch.no_grad()
    def fold(self) -> None:
        """Writes mean and deviation into the projection."""
        self.projection.weight.div_(self.deviation.to(self.projection.weight.device))
        self.projection.bias.sub_(self.projection.weight @ self.mean.to(self.projection.weight.device))


def frozen_sources(
    model: CrossModalTransformer,
    modalities: Sequence[Modality],
    prepared: Prepared,
    precision: torch.dtype,
    progress: Progress,
    device: torch.device = CPU,
) -> dict[Modality, Encoded]:
    """Sources of what the backbones of these modalities make of every item, kept beside the prepared data.

    precision: of images; sounds stay in fp32, as spectra of quiet ones need it.
    """
    sources: dict[Modality, Encoded] = {}
    reader = Reader(prepared, raw_sources(prepared))
    for m in modalities:
        chosen = precision if m == "image" else torch.float32
        encoder = model.encoders[m].to(device)
        folder = prepared.folder / f"frozen-{m}-{digest_of(encoder, chosen)[:16]}"
        sources |= encoded_sources(folder, reader, prepared, _run_of(encoder, m, chosen, device), [m], progress)
        encoder.to(CPU)
    return sources


def without_backbones(
    model: CrossModalTransformer, sources: Mapping[Modality, Encoded], training: Sequence[Item] = ()
) -> Callable[[], None]:
    """Puts Projected in the place of the encoders of these sources; what it returns puts them back.

    training: items whose tokens are of zero mean and unit deviation for a projection that is to learn.
    """
    whole = {m: model.encoders[m] for m in sources}
    given = given_encoders()
    for m, source in sources.items():
        projection = cast(nn.Linear, whole[m].projection)
        mean, deviation = source.moments(training) if training else (torch.zeros(()), torch.ones(()))
        model.encoders[m] = Projected(given[m], projection, mean, deviation)

    def restore() -> None:
        for m, encoder in whole.items():
            if training:
                cast(Projected, model.encoders[m]).fold()
            model.encoders[m] = encoder

    return restore


@torch.no_grad()
def start_evenly(fusion: nn.Module, modalities: Iterable[Modality]) -> None:
    """Lets pools of these modalities begin as the mean of all tokens: each of theirs has seen all of them before."""
    numbers = [MODALITIES.index(m) for m in modalities]
    if isinstance(fusion, SingleFusion):
        pools = [fusion.head.pool] if fusion.index in numbers else []
    else:
        named = {name: module for name, module in fusion.named_modules() if isinstance(module, Pool)}
        pools = [pool for name, pool in named.items() if any(str(number) in name.split(".") for number in numbers)]
    for pool in pools:
        pool.score.weight.mul_(EVEN)


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


def digest_of(encoder: nn.Module, precision: torch.dtype) -> str:
    """SHA-256 of what computes an encoder's features, the projection after it aside; of several, that too."""
    merged = max(getattr(getattr(part, "config", None), MERGED_TOKENS, 0) for part in encoder.modules())
    digest = hashlib.sha256(f"{type(encoder).__name__} {precision} {merged}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if not name.startswith("projection."):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
