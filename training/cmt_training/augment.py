"""Random changes to media that leave the emotion as it is: other light, another place, a slightly other voice."""

from __future__ import annotations

import numpy as np

from cmt_pipeline.buckets import SAMPLE_RATE_HZ
from cmt_pipeline.tensors import Array

SHIFT_PX = 8
LIGHT = 0.25  # most that brightness and contrast change by, as a share
SPEED = 0.08  # most that a sound is sped up or slowed down by, pitch and all (Ko et al. 2015, "Audio augmentation")
TILT = 0.4  # most that a first-order filter darkens or brightens a voice by
SHORTEST = SAMPLE_RATE_HZ * 4 // 5  # samples of a part of a sound that still has a melody
QUIET_DB, LOUD_DB = 40.0, 12.0  # signal-to-noise ratios of added noise


def changed_pixels(pixels: Array, generator: np.random.Generator) -> Array:
    """uint8 [3, height, width], mirrored or not, shifted, in other light."""
    if generator.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    down, right = generator.integers(0, 2 * SHIFT_PX + 1, 2)
    padding = ((0, 0), (SHIFT_PX, SHIFT_PX), (SHIFT_PX, SHIFT_PX))
    _, height, width = pixels.shape
    shifted = np.pad(pixels, padding, mode="edge")[:, down : down + height, right : right + width]
    contrast, brightness = 1 + generator.uniform(-LIGHT, LIGHT, 2)
    table = np.clip((np.arange(256) - 128) * contrast + 128 * brightness, 0, 255).astype(np.uint8)
    changed: Array = table[shifted]
    return changed


def part_of(sound: Array, share: float, generator: np.random.Generator) -> Array:
    """A stretch of a sound [n], beginning anywhere; a short sound stays as it is."""
    count = min(len(sound), max(SHORTEST, round(share * len(sound))))
    start = int(generator.integers(0, len(sound) - count + 1))
    return sound[start : start + count]


def changed_sound(sound: Array, generator: np.random.Generator) -> Array:
    """Samples [n] of zero mean and unit variance, float32, as another microphone and voice would have them."""
    speed = 1 + generator.uniform(-SPEED, SPEED)
    positions = np.arange(int(len(sound) / speed), dtype=np.float32) * np.float32(speed)
    changed = np.interp(positions, np.arange(len(sound), dtype=np.float32), sound.astype(np.float32))
    changed[1:] -= generator.uniform(-TILT, TILT) * changed[:-1]
    deviation = changed.std() * 10 ** (-generator.uniform(LOUD_DB, QUIET_DB) / 20)
    changed += deviation * generator.standard_normal(len(changed), dtype=np.float32)
    normal: Array = ((changed - changed.mean()) / np.sqrt(changed.var() + 1e-7)).astype(np.float32)
    return normal
