"""Features of trained encoders, kept on disk, so that every fusion learns from the very same ones."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.progress import Progress
from cmt_training.batches import Batch, Reader
from cmt_training.encoded import Encoded, encoded_sources
from cmt_training.predict import on_device
from cmt_training.prepare import Prepared


def feature_sources(
    model: CrossModalTransformer, reader: Reader, prepared: Prepared, folder: Path, progress: Progress
) -> dict[Modality, Encoded]:
    """Sources of what the model's encoders make of every item; computed into `folder` where it isn't there."""

    device = next(model.parameters()).device

    def run(batch: Batch) -> dict[Modality, tuple[Tensor, Tensor]]:
        moved = on_device(batch, device)
        encoded = [tensor.cpu() for tensor in model.encode(moved.inputs, moved.presence)]
        return {m: (encoded[2 * column], encoded[2 * column + 1]) for column, m in enumerate(MODALITIES)}

    model.eval()
    return encoded_sources(folder, reader, prepared, run, MODALITIES, progress)
