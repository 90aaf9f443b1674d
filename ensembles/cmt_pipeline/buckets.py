"""Length buckets: audio and text are padded up to one of a few lengths, so that requests meet in a batch.

Triton batches only requests of equal shape together, and a compiled engine is tuned for the shapes it was told of.
"""

from __future__ import annotations

SAMPLE_RATE_HZ = 16_000
AUDIO_SECONDS = (1, 2, 4, 8, 16)
AUDIO_SAMPLES = tuple(seconds * SAMPLE_RATE_HZ for seconds in AUDIO_SECONDS)
TEXT_TOKENS = (16, 32, 64, 128)

# Wav2Vec2's feature encoder (Baevski et al. 2020, table of conv layers): kernel and stride of its seven convolutions.
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)


def frames_of(samples: int) -> int:
    """Frames that the feature encoder makes of so many samples: 4 s at 16 kHz give 199."""
    length = samples
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        length = (length - kernel) // stride + 1
    return length


AUDIO_FRAMES = tuple(frames_of(samples) for samples in AUDIO_SAMPLES)


def bucket_for(length: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `length`. ValueError when none does."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"length {length} came, expected at most {buckets[-1]}")
