"""The text encoder's frozen layers: run once over a data set, then read from disk in every epoch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cmt_export.encoders import MASKED
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.progress import Progress
from cmt_pipeline.tensors import Array
from cmt_training.batches import by_length, padded_rows
from cmt_training.prepare import TOKENS_FILE, Prepared

BATCH = 64


class UpperLayers(nn.Module):
    """Stands for a text backbone whose lower layers were run already: takes their hidden states for token ids."""

    def __init__(self, backbone: Any, layers: int) -> None:
        super().__init__()
        self.config = backbone.config
        self.layers = nn.ModuleList(backbone.encoder.layer[len(backbone.encoder.layer) - layers :])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Hidden states [batch, tokens, hidden] in the place of ids."""
        hidden, bias = input_ids, ((1 - attention_mask.to(input_ids.dtype)) * MASKED)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=bias)
        return SimpleNamespace(last_hidden_state=hidden)


def without_lower_layers(model: CrossModalTransformer, trained: int) -> Any:
    """Puts UpperLayers in the place of the text backbone, which it returns. ValueError for too many layers."""
    encoder = cast(Any, model.encoders["text"])
    backbone = encoder.backbone
    if not 0 <= trained <= (most := len(backbone.encoder.layer)):
        raise ValueError(f"text_layers: got {trained}; expected 0 to {most}: the encoder has no more")
    encoder.backbone = UpperLayers(backbone, trained)
    return backbone


def hidden_rows(backbone: Any, prepared: Prepared, trained: int, progress: Progress) -> Array:
    """What the layers below the last `trained` make of every token: float16 [tokens, hidden], beside tokens.npy."""
    path = prepared.folder / f"hidden-{_digest(backbone, trained)[:16]}.npy"
    if not path.is_file():
        draft = path.with_name(f".{path.stem}-{os.getpid()}.npy")
        try:
            _write(backbone, prepared, trained, draft, progress)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    rows: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


@torch.inference_mode()
def _write(backbone: Any, prepared: Prepared, trained: int, path: Path, progress: Progress) -> None:
    tokens = prepared.array(TOKENS_FILE)
    shape = (len(tokens), backbone.config.hidden_size)
    np.save(path, np.zeros(shape, np.float16), allow_pickle=False)
    if not len(tokens):  # which can't be mapped into memory
        return
    rows = np.load(path, mmap_mode="r+", allow_pickle=False)
    backbone.eval()
    spans = sorted({item.text for item in prepared.items if item.text is not None})
    batches = by_length(range(len(spans)), [count for _, count in spans], BATCH)
    for done, batch in enumerate(batches):
        progress("text encoder, frozen layers", done / len(batches))
        ids, counts = padded_rows([tokens[spans[i][0] : spans[i][0] + spans[i][1]].astype(np.int64) for i in batch])
        mask = (torch.arange(ids.shape[1])[None, :] < counts[:, None]).to(torch.int64)
        states = backbone(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        hidden = states[len(states) - 1 - trained].to(torch.float16).numpy()
        for found, i in zip(hidden, batch, strict=True):
            start, count = spans[i]
            rows[start : start + count] = found[:count]
    rows.flush()


def _digest(backbone: nn.Module, trained: int) -> str:
    digest = hashlib.sha256(str(trained).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
