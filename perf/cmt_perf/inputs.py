"""Requests of a set size: a JPEG, a WAV and a sentence, each different, the same for the same seed."""

from __future__ import annotations

import io

import numpy as np

from cmt_client import Item
from cmt_export.samples import generated_bytes

JPEG_QUALITY = 90

#: Each is one token of BERT's uncased WordPiece vocabulary.
COMMON = (
    "the of and in to was he is as for on with that it his by at from her she you had an were but be this are not my "
    "they one which or have him me first all also their has up who out been when after there into new two its time "
    "would no what about said we over then other so more can if like back them only some could where just"
)
SPECIAL_TOKENS = 2  # [CLS] and [SEP]


def sized_item(rng: np.random.Generator, audio_s: float, text_tokens: int, image_px: int) -> Item:
    """All three modalities; text_tokens: with [CLS] and [SEP]; image_px: of each side."""
    return {
        "image": _photo(rng, image_px),
        "audio": generated_bytes("audio", rng, audio_s),
        "text": " ".join(rng.choice(COMMON.split(), max(1, text_tokens - SPECIAL_TOKENS))),
    }


def _photo(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG with detail on every scale, as photographs have: about as dear to decode."""
    from PIL import Image

    total = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    total += rng.normal(0, 2, total.shape).astype(np.float32)
    total -= total.min()
    buffer = io.BytesIO()
    Image.fromarray((total * (255 / total.max())).astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
