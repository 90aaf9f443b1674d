"""Length buckets: audio and text are padded up to one of a few lengths, so that requests meet in a batch.

Triton batches only requests of equal shape together, and a compiled engine is tuned for the shapes it was built with.
"""

from __future__ import annotations

import math

SAMPLE_RATE_HZ = 16_000
#: None is more than half as long again as the one before: that much of an utterance's work is padding at most.
AUDIO_SECONDS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)
TEXT_TOKENS = (16, 32, 64, 128)

# Wav2Vec2's feature encoder (Baevski et al. 2020, table of conv layers): kernel and stride of its seven convolutions.
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)


def frames_of(samples: int) -> int:
    """Frames that the feature encoder makes of so many samples."""
    length = samples
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        length = (length - kernel) // stride + 1
    return length


HOP = math.prod(CONV_STRIDES)
RECEPTIVE_FIELD = 400  # samples of which it makes the first frame

#: Full eights: matrix products share their rows out among cores, and 199 (4 s to the sample) leave one of two waiting.
FRAME_MULTIPLE = 8


def _frames_for(seconds: float) -> int:
    frames = round(seconds * SAMPLE_RATE_HZ / HOP)
    return -(-frames // FRAME_MULTIPLE) * FRAME_MULTIPLE


AUDIO_FRAMES = tuple(_frames_for(seconds) for seconds in AUDIO_SECONDS)
AUDIO_SAMPLES = tuple(RECEPTIVE_FIELD + HOP * (frames - 1) for frames in AUDIO_FRAMES)


def bucket_for(length: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `length`. ValueError when none does."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"got length {length}, expected at most {buckets[-1]}")
