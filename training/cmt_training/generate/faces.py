"""Faces, drawn: who it is (Face), what the face does (Actions), and where it is seen (scenes)."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from cmt_training.generate.canvas import HEAD_HEIGHT, Canvas, Colour, Points, blend, curve, ellipse, shade
from cmt_training.generate.expressions import Actions

SKINS: tuple[Colour, ...] = (
    (250, 222, 202),
    (236, 194, 164),
    (214, 164, 126),
    (176, 122, 86),
    (128, 84, 58),
    (88, 58, 44),
)
HAIRS: tuple[Colour, ...] = ((34, 26, 24), (74, 48, 32), (128, 84, 48), (196, 156, 92), (142, 62, 34), (150, 148, 146))
IRISES: tuple[Colour, ...] = ((70, 46, 30), (96, 74, 40), (70, 104, 66), (72, 110, 148), (92, 100, 108))
STYLES = ("bald", "short", "parted", "long", "bun", "curly")
LIP: Colour = (176, 74, 78)
TOOTH: Colour = (244, 240, 232)
MOUTH: Colour = (72, 24, 28)


@dataclass(frozen=True)
class Face:
    """One person's looks. Lengths in halves of a head's width."""

    skin: Colour
    hair: Colour
    iris: Colour
    style: str
    head_width: float
    jaw: float  # squareness
    eye_size: float
    eye_distance: float
    brow_height: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_thickness: float
    mouth_height: float
    glasses: bool
    beard: bool
    creases: float  # of age, 0 to 1
    clothes: Colour
    rest: Actions  # what the face does when it shows nothing


def face_of(rng: np.random.Generator) -> Face:
    """Somebody's face."""
    skin = blend(SKINS[i := int(rng.integers(len(SKINS) - 1))], SKINS[i + 1], float(rng.random()))
    habits = rng.normal(0, 0.12, len(astuple(Actions())))
    return Face(
        skin=skin,
        hair=shade(HAIRS[int(rng.integers(len(HAIRS)))], float(rng.uniform(0.8, 1.15))),
        iris=IRISES[int(rng.integers(len(IRISES)))],
        style=STYLES[int(rng.integers(len(STYLES)))],
        head_width=float(rng.uniform(0.84, 1.0)),
        jaw=float(rng.uniform(1.9, 2.6)),
        eye_size=float(rng.uniform(0.85, 1.15)),
        eye_distance=float(rng.uniform(0.36, 0.44)),
        brow_height=float(rng.uniform(-0.03, 0.05)),
        brow_thickness=float(rng.uniform(0.05, 0.1)),
        nose_length=float(rng.uniform(0.4, 0.54)),
        nose_width=float(rng.uniform(0.12, 0.2)),
        mouth_width=float(rng.uniform(0.3, 0.4)),
        lip_thickness=float(rng.uniform(0.05, 0.1)),
        mouth_height=float(rng.uniform(0.6, 0.68)),
        glasses=bool(rng.random() < 0.2),
        beard=bool(rng.random() < 0.2),
        creases=float(rng.random()),
        clothes=tuple(int(v) for v in rng.integers(30, 225, 3)),  # type: ignore[arg-type]  # three of them
        rest=Actions(*(float(v) for v in habits)),
    )


def draw_face(canvas: Canvas, face: Face, actions: Actions) -> None:
    """The head, from behind to the front."""
    _behind(canvas, face)
    _head(canvas, face)
    _nose(canvas, face, actions)
    for side in (-1, 1):
        _eye(canvas, face, actions, side)
        _brow(canvas, face, actions, side)
    if face.beard:
        chin = ellipse(0, 0.86, 0.62 * face.head_width, 0.42, power=2.4)
        canvas.polygon(chin, blend(face.hair, face.skin, 0.3))
    _mouth(canvas, face, actions)
    _fringe(canvas, face)


def _behind(canvas: Canvas, face: Face) -> None:
    if face.style == "long":
        canvas.polygon(ellipse(0, 0.25, 1.2, 1.6, power=2.6), face.hair, turns=False)
    elif face.style == "curly":
        for x, y in ellipse(0, -0.35, 1.0, 1.05, points=14):
            canvas.polygon(ellipse(x, y, 0.36, 0.36), face.hair, turns=False)
    elif face.style == "bun":
        canvas.polygon(ellipse(0, -1.45, 0.42, 0.36), face.hair, turns=False)
    canvas.polygon([(-0.36, 0.7), (0.36, 0.7), (0.45, 2.2), (-0.45, 2.2)], shade(face.skin, 0.82), turns=False)
    canvas.polygon(ellipse(0, 2.75, 1.75, 1.15, power=2.6), face.clothes, turns=False)


def _head(canvas: Canvas, face: Face) -> None:
    for side in (-1, 1):
        canvas.polygon(ellipse(side * face.head_width, 0.08, 0.14, 0.25), shade(face.skin, 0.9), turns=False)
    outline = ellipse(0, 0, face.head_width, HEAD_HEIGHT, points=60)
    below = outline[:, 1] > 0
    jaw = ellipse(0, 0, face.head_width, HEAD_HEIGHT, points=60, power=face.jaw)
    canvas.polygon(np.where(below[:, None], jaw, outline), face.skin, turns=False)


def _eye(canvas: Canvas, face: Face, actions: Actions, side: int) -> None:
    x, y, width = side * face.eye_distance, -0.12, 0.2 * face.eye_size
    upper = 0.105 * face.eye_size * float(np.clip(1 + 0.75 * actions.lid_upper, 0.2, 2.0))
    lower = 0.08 * face.eye_size * float(np.clip(1 - 0.75 * actions.lid_lower, 0.1, 1.4))
    top = curve([(x - width, y + 0.01), (x, y - upper), (x + width, y + 0.01)])
    bottom = curve([(x + width, y + 0.01), (x, y + lower), (x - width, y + 0.01)])
    canvas.polygon(np.concatenate([top, bottom]), (246, 244, 240))
    radius = 0.095 * face.eye_size
    down = y + 0.05 * float(np.clip(actions.gaze_down, -1, 1))
    for share, colour in ((1.0, face.iris), (0.5, (16, 14, 14))):
        iris = ellipse(x, down, radius * share, radius * share)
        canvas.polygon(_between(iris, y - upper * 0.98, y + lower * 0.98), colour)
    canvas.polygon(
        ellipse(x + 0.03, min(max(down - 0.03, y - upper * 0.7), y + lower * 0.5), 0.02, 0.02), (255, 255, 255)
    )
    canvas.line(top, shade(face.skin, 0.35), 0.035)
    canvas.line(bottom, shade(face.skin, 0.7), 0.018)
    bag = 0.05 + 0.05 * (1 - max(actions.lid_lower, 0))
    if actions.lid_lower > 0.25 or face.creases > 0.6:
        canvas.line(
            curve([(x - width, y + 0.1), (x, y + lower + bag), (x + width, y + 0.1)]), shade(face.skin, 0.82), 0.02
        )
    if face.glasses:
        frame = ellipse(x, y + 0.02, 0.31, 0.26, power=2.8)
        canvas.line([*frame, frame[0]], (40, 40, 46), 0.03)
        canvas.line([(side * 0.06, y), (x - side * 0.31, y)], (40, 40, 46), 0.03)


def _brow(canvas: Canvas, face: Face, actions: Actions, side: int) -> None:
    y = -0.4 - face.brow_height
    inner_x = side * (face.eye_distance - 0.2 - 0.07 * actions.furrow)
    inner = y - 0.15 * actions.brow_inner + 0.02
    middle = y - 0.075 * (actions.brow_inner + actions.brow_outer) - 0.05
    outer = y - 0.14 * actions.brow_outer + 0.03
    points = curve([(inner_x, inner), (side * face.eye_distance, middle), (side * (face.eye_distance + 0.25), outer)])
    canvas.line(points, shade(blend(face.hair, (30, 24, 22), 0.4), 0.9), face.brow_thickness)
    if actions.furrow > 0.3:
        canvas.line([(side * 0.06, y - 0.08), (side * 0.05, y + 0.1)], shade(face.skin, 0.75), 0.02)
    raised = max(actions.brow_inner, 0) + max(actions.brow_outer, 0)
    if raised > 0.6:
        crease = curve([(0, -0.78), (side * 0.3, -0.8), (side * 0.55, -0.74)])
        canvas.line(crease, shade(face.skin, 1 - 0.1 * min(raised, 2)), 0.02)


def _nose(canvas: Canvas, face: Face, actions: Actions) -> None:
    tip = -0.1 + face.nose_length - 0.06 * max(actions.nose, 0)
    dark = shade(face.skin, 0.78)
    canvas.line(curve([(0.05, -0.1), (0.09, tip * 0.5), (face.nose_width, tip - 0.04)]), shade(face.skin, 0.86), 0.025)
    width = face.nose_width * (1 + 0.3 * max(actions.nose, 0))
    canvas.line(curve([(-width, tip - 0.03), (0, tip + 0.05), (width, tip - 0.03)]), dark, 0.035)
    for side in (-1, 1):
        canvas.polygon(ellipse(side * width * 0.5, tip, 0.045, 0.026), shade(face.skin, 0.5))
        if actions.nose > 0.25:
            for step in (0.0, 0.07):
                wrinkle = [(side * 0.03, -0.16 + step), (side * (0.13 + step / 2), -0.1 + step)]
                canvas.line(wrinkle, shade(face.skin, 1 - 0.3 * min(actions.nose, 1)), 0.022)


def _mouth(canvas: Canvas, face: Face, actions: Actions) -> None:
    half = face.mouth_width * float(np.clip(1 + 0.35 * actions.width + 0.15 * max(actions.corners, 0), 0.5, 1.6))
    y, gap = face.mouth_height, 0.3 * float(np.clip(actions.open, 0, 1.1))
    corner = y - 0.13 * actions.corners
    middle = y + 0.04 * max(actions.corners, 0) - 0.02 * max(-actions.corners, 0)
    raised = 0.1 * max(actions.lip_upper, 0)
    lip = face.lip_thickness * float(np.clip(1 - 0.6 * actions.press, 0.3, 1.2))
    ends = (-half, corner), (half, corner)
    top = curve([ends[0], (0, middle - gap * 0.25 - raised), ends[1]])
    bottom = curve([ends[1], (0, middle + gap * 0.75), ends[0]])
    above = curve([ends[0], (0, middle - gap * 0.25 - raised - lip), ends[1]])
    below = curve([ends[1], (0, middle + gap * 0.75 + lip * 1.2), ends[0]])
    canvas.polygon(np.concatenate([above, below]), blend(LIP, shade(face.skin, 0.75), 0.45))
    inside = np.concatenate([top, bottom])
    if gap + raised > 0.08:
        canvas.polygon(inside, MOUTH)
        teeth = min(0.08, (gap + raised) * 0.5)
        edge = top[2:-2]
        canvas.polygon(np.concatenate([edge, edge[::-1] + np.array((0, teeth))]), TOOTH)
    canvas.line(top, shade(MOUTH, 0.9), 0.022)
    for side in (-1, 1):
        _fold(canvas, face, actions, side, half, corner)


def _fold(canvas: Canvas, face: Face, actions: Actions, side: int, half: float, corner: float) -> None:
    """From the nose to the corner of the mouth, where a smile, a sneer or age makes it."""
    depth = max(actions.corners, 0) * 0.6 + max(actions.lip_upper, 0) * 0.7 + 0.3 * face.creases
    if depth > 0.2:
        start, end = (side * (face.nose_width + 0.06), 0.3), (side * (half + 0.08), corner - 0.02)
        bend = (side * (half + 0.06 + 0.08 * max(actions.corners, 0)), 0.45)
        canvas.line(curve([start, bend, end]), shade(face.skin, 1 - 0.25 * min(depth, 1)), 0.025)


def _fringe(canvas: Canvas, face: Face) -> None:
    if face.style == "bald":
        return
    cap = ellipse(0, -0.04, face.head_width * 1.03, HEAD_HEIGHT, points=160)
    line = {"short": -0.82, "parted": -0.76, "long": -0.72, "bun": -0.86, "curly": -0.76}[face.style]
    slope = {"parted": 0.22, "long": 0.1}.get(face.style, 0.0)
    canvas.polygon(cap[cap[:, 1] < line + slope * cap[:, 0]], face.hair, turns=False)


def _between(points: Points, top: float, bottom: float) -> Points:
    return np.stack([points[:, 0], np.clip(points[:, 1], top, bottom)], 1)
