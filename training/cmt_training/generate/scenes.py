"""Where a face is seen, cropped close: pose, background, light and camera; and what spoils the picture."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from cmt_training.generate.canvas import Canvas, Pose
from cmt_training.generate.expressions import Actions
from cmt_training.generate.faces import Face, draw_face

JPEG_QUALITY = (70, 92)
GRAIN = 4.0  # standard deviation of a clean camera's noise, of 255
TILT = 0.22  # radians


def picture(face: Face, actions: Actions, noise: float, side_px: int, rng: np.random.Generator) -> bytes:
    """A JPEG file of one moment. noise: how spoilt the picture is, 0 to 1."""
    canvas = Canvas(_background(side_px, rng), _pose(actions, rng))
    draw_face(canvas, face, actions)
    spoiling = rng.spawn(1)[0]  # whatever spoils it, the rest stays the same
    image = _lit(canvas.finished(), rng)
    if noise:
        image = _spoilt(image, noise, spoiling)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
    return file.getvalue()


def _pose(actions: Actions, rng: np.random.Generator) -> Pose:
    roll, yaw, pitch = rng.normal(0, (0.05, 0.13, 0.07))
    return Pose(
        roll=float(roll + TILT * actions.tilt * rng.choice((-1, 1))),
        yaw=float(yaw),
        pitch=float(pitch + 0.06 * max(actions.gaze_down, 0)),
        x=float(rng.normal(0.5, 0.018)),
        y=float(rng.normal(0.5, 0.018)),
        scale=float(rng.uniform(0.38, 0.42)),
    )


def _background(side_px: int, rng: np.random.Generator) -> Image.Image:
    """A blurred room: a gradient and a few shapes."""
    small = 48
    top, bottom = rng.integers(40, 230, (2, 3))
    share = np.linspace(0, 1, small)[:, None, None]
    rows = np.broadcast_to(top * (1 - share) + bottom * share, (small, small, 3))
    image = Image.fromarray(rows.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 6))):
        x, y, width, height = rng.integers((-8, -8, 6, 6), (40, 40, 30, 40))
        colour = tuple(int(v) for v in rng.integers(30, 235, 3))
        draw.rectangle((int(x), int(y), int(x + width), int(y + height)), fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 3))))
    return image.resize((side_px, side_px), Image.Resampling.BILINEAR)


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, its colour and strength, and the camera's grain."""
    side = image.width
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.35)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    light = 1 + contrast * (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None])
    colour = rng.uniform(0.75, 1.12) * rng.normal(1, 0.04, 3)
    pixels = np.asarray(image, np.float32) * light[..., None] * colour.astype(np.float32)
    return _image(pixels + rng.standard_normal(pixels.shape, np.float32) * GRAIN)


def _spoilt(image: Image.Image, noise: float, rng: np.random.Generator) -> Image.Image:
    """One or more of blur, grain, darkness and something in front of the face."""
    kinds = rng.permutation(4)[: 1 + int(rng.random() < noise)]
    side = image.width
    if 0 in kinds:
        image = image.filter(ImageFilter.GaussianBlur(noise * side * 0.055))
    if 1 in kinds:
        image = _covered(image, noise, rng)
    pixels = np.asarray(image, np.float32)
    if 2 in kinds:
        pixels = pixels * (1 - 0.85 * noise) + rng.standard_normal(pixels.shape, np.float32) * 12 * noise
    if 3 in kinds:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * 110 * noise
    return _image(pixels)


def _covered(image: Image.Image, noise: float, rng: np.random.Generator) -> Image.Image:
    """Bars in front of the eyes, the mouth or both."""
    image = image.copy()
    side = image.width
    draw = ImageDraw.Draw(image)
    colour = tuple(int(v) for v in rng.integers(20, 235, 3))
    parts = [0.42, 0.66] if noise > 0.7 else [float(rng.choice((0.42, 0.66)))]
    for middle in parts:
        height = side * (0.08 + 0.1 * noise)
        y = side * middle + rng.normal(0, 0.02 * side)
        draw.rectangle((0.12 * side, y - height, 0.88 * side, y + height), fill=colour)
    return image


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
