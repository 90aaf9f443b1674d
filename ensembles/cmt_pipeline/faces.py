"""The faces in a picture: found by BlazeFace, turned upright by the eyes, cut out with a margin.

BlazeFace (Bazarevsky et al. 2019, arXiv 1907.05047) comes in several sizes. The one for 256 pixels finds faces down to
an eighth of a picture's longer side, and now and then one in a texture. So whatever it finds is cut out and has
to be a face to the one for 128 pixels too, whose eyes then are the sharper. Where that leaves none, the same is done in
overlapping windows of half the longer side.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cmt_pipeline.face_note import Box

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]

#: What a picture's face is to a release: `never` looked for; `auto`: cut out where there is one; `always`: without one
#: the picture counts as absent.
FaceMode = Literal["never", "auto", "always"]
FACE_MODES: tuple[FaceMode, ...] = get_args(FaceMode)

FOLDER = Path(__file__).parent / "face_models"
LEAST_SCORE = 0.5
#: Of the second look, at a picture and in its windows, of which there are more: a cat reaches 0.53 and a galaxy 0.7.
SURE_SCORE, SURE_SCORE_IN_WINDOW = 0.6, 0.75
SAME_FACE = 0.3  # intersection over union
#: Of a face's box, on each side: what MediaPipe cuts out for its landmarks.
MARGIN = 0.25
#: Of a candidate's box, on each side, where it is looked at again.
SECOND_LOOK = 0.5
MOST_CANDIDATES = 8
#: Of the longer side; windows overlap by a quarter of themselves, so that hardly a face is cut by all of them.
WINDOW, OVERLAP = 0.5, 0.25
MOST_OF_SHORTER = 1.25  # of the shorter side: a face may reach beyond the border, not much
#: Below it turning only blurs.
LEAST_TURN_DEG = 3.0
RAW_SCORES = 80.0  # beyond it the sigmoid overflows
EYES = (0, 1)


@dataclass(frozen=True)
class Face:
    """box: left, top, right, bottom in pixels; angle_deg: how far it is turned clockwise; score: from 0 to 1."""

    box: Box
    angle_deg: float
    score: float

    @property
    def size(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    def box_in(self, scale: float) -> Box:
        """The box in a picture that is so many times as large, to a tenth of a pixel."""
        left, top, right, bottom = (round(value * scale, 1) for value in self.box)
        return left, top, right, bottom


class FaceFinder:
    """The two networks. Any number of threads. ImportError without OpenVINO."""

    def __init__(self) -> None:
        self._far = _BlazeFace(FOLDER / "blazeface_back.tflite", 256, (16, 32, 32, 32))
        self._near = _BlazeFace(FOLDER / "blazeface_short_range.tflite", 128, (8, 16, 16, 16))

    def find(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB image, MOST_CANDIDATES at most, the most prominent, by area times score, first.

        Where the whole picture shows some, smaller ones that only its windows would show aren't looked for.
        """
        found = self._confirmed(image, [(0, 0, *image.size)], SURE_SCORE)
        if not found and max(image.size) > self._far.side:
            found = self._confirmed(image, list(_windows(*image.size)), SURE_SCORE_IN_WINDOW)
        return _distinct(sorted(found, key=lambda face: -(face.size**2) * face.score))

    def _confirmed(self, image: Image.Image, windows: list[tuple[int, int, int, int]], least: float) -> list[Face]:
        candidates = [face for window in windows for face in self._far.faces(image, window)]
        candidates.sort(key=lambda face: -face.size * face.score)
        return [face for one in candidates[:MOST_CANDIDATES] if (face := self._again(image, one, least))]

    def _again(self, image: Image.Image, candidate: Face, least: float) -> Face | None:
        """The same face as the other network sees it, if it does."""
        left, top, right, bottom = candidate.box
        around = SECOND_LOOK * candidate.size
        window = (int(left - around), int(top - around), int(right + around) + 1, int(bottom + around) + 1)
        clipped = (max(0, window[0]), max(0, window[1]), min(image.width, window[2]), min(image.height, window[3]))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            return None
        seen = self._near.faces(image, clipped)
        most = MOST_OF_SHORTER * min(image.size)
        sure = (face for face in seen if face.score >= least and face.size <= most)
        return next((face for face in sure if _overlap(face.box, candidate.box) >= SAME_FACE), None)


def _distinct(faces: list[Face]) -> list[Face]:
    """Windows overlap: each face once."""
    kept: list[Face] = []
    for face in faces:
        if all(_overlap(face.box, other.box) < SAME_FACE for other in kept):
            kept.append(face)
    return kept


def cut_out(image: Image.Image, face: Face) -> Image.Image:
    """The square around a face, upright; what lies beyond the border is the border's own pixels."""
    from PIL import Image as Images

    side = max(1, round(face.size * (1 + 2 * MARGIN)))
    across, down = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    turn = face.angle_deg if abs(face.angle_deg) >= LEAST_TURN_DEG else 0.0
    radians = math.radians(turn)
    reach = math.ceil(side / 2 * (abs(math.cos(radians)) + abs(math.sin(radians))))
    rows = np.arange(round(down) - reach, round(down) + reach).clip(0, image.height - 1)
    columns = np.arange(round(across) - reach, round(across) + reach).clip(0, image.width - 1)
    pixels = np.asarray(image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
    around = Images.fromarray(pixels[rows - rows[0]][:, columns - columns[0]])
    if turn:
        around = around.rotate(turn, Images.Resampling.BICUBIC)
    start = reach - side // 2
    return around.crop((start, start, start + side, start + side))


class _BlazeFace:
    """One network: a square of pixels -> for each of its anchors a score, a box and six points."""

    def __init__(self, path: Path, side: int, strides: tuple[int, ...]) -> None:
        self.side = side
        self._anchors = _anchors(side, strides)
        self._model = _compiled(path)
        self._own = threading.local()

    def faces(self, image: Image.Image, window: tuple[int, int, int, int]) -> list[Face]:
        """Those within a window of the image, in the image's pixels, the surest first."""
        square, scale, corner = _letterboxed(image, window, self.side)
        boxes, scores = self._run(square)
        scores = 1 / (1 + np.exp(-scores.clip(-RAW_SCORES, RAW_SCORES)))
        likely = scores > LEAST_SCORE
        boxes, scores, anchors = boxes[likely], scores[likely], self._anchors[likely]
        points = boxes.reshape(-1, 8, 2)  # the box's centre and size, then the eyes, nose, mouth and ears
        points[:, 0] += anchors * self.side
        points[:, 2:] += anchors[:, None] * self.side
        return [_face(points[group], scores[group], scale, corner) for group in _grouped(points, scores)]

    def _run(self, square: Floats) -> tuple[Floats, Floats]:
        """[896, 16] and [896]."""
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        results: list[Floats] = [
            np.array(array, np.float32) for array in self._own.request.infer([square[None]]).values()
        ]
        boxes, scores = sorted(results, key=lambda array: -array.shape[-1])
        points: Floats = boxes[0]
        certain: Floats = scores[0, :, 0]
        return points, certain


def _compiled(path: Path) -> Any:
    """Compiled in a thread of its own: OpenVINO's CPU plugin replaces the signal stack of the one that it is in."""
    import openvino

    made: list[Any] = []

    def compile_model() -> None:
        made.append(openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1}))

    thread = threading.Thread(target=compile_model)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError(f"{path} doesn't open in OpenVINO {openvino.__version__}; install the package again")
    return made[0]


def _anchors(side: int, strides: tuple[int, ...]) -> Floats:
    """[anchors, 2]: the centres that boxes are relative to, two a layer in each cell of its grid, from 0 to 1."""
    made = []
    for stride in dict.fromkeys(strides):
        centres = (np.arange(side // stride, dtype=np.float32) + 0.5) * stride / side
        grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
        made.append(np.repeat(grid, 2 * strides.count(stride), axis=0))
    anchors: Floats = np.concatenate(made).astype(np.float32)
    return anchors


def _letterboxed(
    image: Image.Image, window: tuple[int, int, int, int], side: int
) -> tuple[Floats, float, tuple[float, float]]:
    """The window as a square [side, side, 3] from -1 to 1, the pixels of the image that one of its own stands for, and
    where its corner lies in the image."""
    from PIL import Image as Images

    width, height = window[2] - window[0], window[3] - window[1]
    scale = max(width, height) / side
    size = max(1, round(width / scale)), max(1, round(height / scale))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    canvas = Images.new("RGB", (side, side))
    canvas.paste(image.resize(size, Images.Resampling.BILINEAR, window, reducing_gap=2.0), (left, top))
    return np.asarray(canvas, np.float32) / 127.5 - 1, scale, (window[0] - left * scale, window[1] - top * scale)


def _grouped(points: Floats, scores: Floats) -> Iterator[NDArray[np.intp]]:
    """Indices of the boxes that are the same face, the surest face first."""
    corners = np.concatenate([points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2], axis=1)
    left = np.argsort(-scores, kind="stable")
    while len(left):
        same = np.array([_overlap(corners[left[0]], corners[index]) > SAME_FACE for index in left])
        same[0] = True
        yield left[same]
        left = left[~same]


def _face(points: Floats, scores: Floats, scale: float, corner: tuple[float, float]) -> Face:
    """The mean of several boxes [boxes, 8, 2], weighted by their scores, in the image's pixels."""
    mean = np.average(points, axis=0, weights=scores).astype(np.float64)
    (across, down), (width, height) = mean[0] * scale + corner, mean[1] * scale
    first, second = mean[2 + EYES[0]], mean[2 + EYES[1]]
    angle = math.degrees(math.atan2(second[1] - first[1], second[0] - first[0]))
    box = (across - width / 2, down - height / 2, across + width / 2, down + height / 2)
    return Face((float(box[0]), float(box[1]), float(box[2]), float(box[3])), angle, float(scores.max()))


def _overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boxes; 0 of an empty one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return float(both / (areas - both))


def _windows(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Squares of half the longer side that cover the image, those at its edges clipped."""
    side = max(1, round(WINDOW * max(width, height)))

    def starts(length: int) -> list[int]:
        count = math.ceil(max(0, length - side) / (side * (1 - OVERLAP))) + 1
        return [round(index * (length - side) / max(1, count - 1)) for index in range(count)]

    for top in starts(height):
        for left in starts(width):
            yield left, top, min(width, left + side), min(height, top + side)
