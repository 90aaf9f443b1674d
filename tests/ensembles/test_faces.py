"""Faces: found at any size and turn, told in the pixels of what was sent; none in pictures that have none."""

from __future__ import annotations

import importlib.util
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.faces import Face, FaceFinder, FaceMode, cut_out
from cmt_pipeline.image import ORIENTATION, ImagePreprocessor
from cmt_pipeline.preprocess import PreprocessConfig, is_absent
from photographs import WHERE, astronaut, crowd, needs_photographs, photograph

FER2013 = Path(__file__).parents[3] / "shared" / "data" / "fer2013" / "fer2013.tar.gz"
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")
pytestmark = needs_openvino


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def the_one(finder: FaceFinder, image: Image.Image) -> Face:
    (face,) = finder.find(image)
    return face


def near(box: tuple[float, ...], wanted: tuple[float, ...], within: float) -> bool:
    return all(abs(got - side) <= within for got, side in zip(box, wanted, strict=True))


def preprocessor(face: FaceMode) -> ImagePreprocessor:
    return ImagePreprocessor((0.5,) * 3, (0.5,) * 3, face=face)


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def note_of(made: dict[str, object]) -> FaceNote:
    note = FaceNote.from_json(made["face"][0])  # type: ignore[index]
    assert note is not None
    return note


@pytest.mark.long
@needs_photographs
def test_a_face_is_found_where_it_is(finder: FaceFinder) -> None:
    face = the_one(finder, astronaut())
    assert near(face.box, WHERE, 12)
    assert abs(face.angle_deg) < 8
    assert face.score > 0.8


@needs_photographs
@pytest.mark.parametrize("turn", [-45, 30, 60])
def test_a_turned_face_is_cut_out_upright(finder: FaceFinder, turn: float) -> None:
    upright = the_one(finder, astronaut())
    face = the_one(finder, astronaut().rotate(-turn, Image.Resampling.BICUBIC, fillcolor=(90, 90, 90)))
    assert abs(face.angle_deg - upright.angle_deg - turn) < 10
    again = the_one(finder, cut_out(astronaut().rotate(-turn, Image.Resampling.BICUBIC), face))
    assert abs(again.angle_deg) < 8


@needs_photographs
def test_what_lies_beyond_the_border_is_the_borders_own(finder: FaceFinder) -> None:
    face = the_one(finder, astronaut().crop((190, 75, 512, 512)))
    square = np.asarray(cut_out(astronaut().crop((190, 75, 512, 512)), face))
    assert square.shape[0] == square.shape[1]
    assert (square[:, 0] == square[:, 1]).mean() > 0.9 or abs(face.angle_deg) >= 3


@needs_photographs
@pytest.mark.parametrize("name", ["chelsea.png", "brick.png", "rocket.jpg", "coffee.png", "grass.png"])
def test_a_picture_without_a_face_has_none(finder: FaceFinder, name: str) -> None:
    assert not finder.find(photograph(name))


def test_drawn_noise_has_no_face(finder: FaceFinder) -> None:
    rng = np.random.default_rng(0)
    for side in (32, 256, 900):
        noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        assert not finder.find(Image.fromarray(noise).resize((side, side * 2 // 3)))


def test_a_strip_is_looked_through_in_little_memory(finder: FaceFinder) -> None:
    assert not finder.find(Image.new("RGB", (500_000, 16), (200, 150, 120)))


@pytest.mark.long
@needs_photographs
def test_a_box_is_told_in_pixels_of_the_upright_original() -> None:
    """Sent large, lying on its side, as a phone does."""
    large = astronaut().resize((2048, 2048), Image.Resampling.BICUBIC)
    note = note_of(preprocessor("auto")(jpeg(large.transpose(Image.Transpose.ROTATE_90), orientation=6)))
    assert note.used == "face"
    assert note.box is not None
    assert near(note.box, tuple(4 * side for side in WHERE), 48)


@pytest.mark.long
@needs_photographs
def test_every_face_is_told_the_most_prominent_first() -> None:
    scene, boxes = crowd(200, 280, 160)
    note = note_of(preprocessor("auto")(jpeg(scene)))
    assert note.box is not None
    for told, where in zip((note.box, *note.others), (boxes[1], boxes[0], boxes[2]), strict=True):
        assert near(told, where, 24)
    assert FaceNote.from_json(note.to_json()) == note


@needs_photographs
def test_a_face_that_several_windows_show_is_told_once() -> None:
    scene = Image.new("RGB", (1600, 1200), (90, 110, 90))
    scene.paste(astronaut().crop((124, 22, 324, 222)).resize((150, 150)), (730, 540))  # where all of them meet
    note = note_of(preprocessor("auto")(jpeg(scene)))
    assert note.used == "face"
    assert note.others == ()


@pytest.mark.parametrize(
    "text", ['{"used": "face"}', '{"used": "seen", "box": null}', '{"used": "face", "box": [1, 2, 3]}', "[]", "{"]
)
def test_another_note_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        FaceNote.from_json(text)


def test_a_note_of_an_older_release_names_no_others() -> None:
    old = '{"used": "face", "box": [1, 2, 3, 4], "angle_deg": 5, "score": 0.9}'
    assert FaceNote.from_json(old) == FaceNote("face", (1, 2, 3, 4), 5, 0.9)


@pytest.mark.long
@needs_photographs
def test_the_face_is_what_the_encoder_sees(finder: FaceFinder) -> None:
    """The picture around it doesn't matter."""
    data = jpeg(astronaut())
    face = the_one(finder, Image.open(io.BytesIO(data)))
    cut = cut_out(Image.open(io.BytesIO(data)), face).resize((224, 224), Image.Resampling.BILINEAR)
    seen = preprocessor("auto")(data)["pixel_values"]
    np.testing.assert_allclose(seen, np.asarray(cut, np.float32).transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize(("mode", "used"), [("auto", "whole"), ("always", "absent")])
def test_without_a_face_the_picture_is_seen_whole_or_counts_as_absent(mode: FaceMode, used: str) -> None:
    data = jpeg(Image.linear_gradient("L").convert("RGB").resize((640, 480)))
    made = preprocessor(mode)(data)
    assert note_of(made) == FaceNote(used)  # type: ignore[arg-type]
    assert is_absent(made) == (used == "absent")
    np.testing.assert_array_equal(made["pixel_values"], preprocessor("never")(data)["pixel_values"])


def test_nobody_looks_by_default() -> None:
    assert preprocessor("never")(jpeg(Image.new("RGB", (64, 64)))).keys() == {"pixel_values"}
    assert "face" not in PreprocessConfig().to_json()  # released weights answer as before
    config = PreprocessConfig(face="always", image_tokens=49)
    assert PreprocessConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="face: got 'perhaps'; expected one of never, auto, always"):
        ImagePreprocessor((0.5,) * 3, (0.5,) * 3, face="perhaps")  # type: ignore[arg-type]


@pytest.mark.long
@needs_photographs
@pytest.mark.skipif(not FER2013.is_file(), reason="FER2013 isn't in ../shared/data")
def test_small_faces_in_large_pictures_are_found(finder: FaceFinder) -> None:
    """Faces of FER2013, 48 pixels each, pasted into photographs of 800 x 600 at known places, sizes and turns."""
    rng, found, wrong = random.Random(0), 0, 0
    faces = _faces(24)
    for index, face in enumerate(faces):
        scene = photograph(("coffee.png", "rocket.jpg", "brick.png")[index % 3]).resize((800, 600))
        size, turn = (320, 160, 100)[index % 3], (0, 20, -20)[index // 3 % 3]
        pasted = face.resize((size, size), Image.Resampling.BICUBIC).rotate(
            -turn, Image.Resampling.BICUBIC, expand=True
        )
        left, top = rng.randrange(800 - pasted.width), rng.randrange(600 - pasted.height)
        scene.paste(pasted, (left, top), pasted)
        if not (faces_seen := finder.find(scene)):
            continue
        seen = faces_seen[0]
        across, down = (seen.box[0] + seen.box[2]) / 2, (seen.box[1] + seen.box[3]) / 2
        right = abs(across - left - pasted.width / 2) < 0.3 * size and abs(down - top - pasted.height / 2) < 0.35 * size
        found, wrong = found + right, wrong + (not right)
    assert found >= 0.7 * len(faces)  # of sizes and expressions of all kinds, without hair or neck
    assert wrong <= 0.05 * len(faces)


def _faces(count: int) -> list[Image.Image]:
    """Of the test split, as many of each expression."""
    made = []
    with tarfile.open(FER2013) as archive:
        names = [name for name in archive.getnames() if "/test/" in name and name.endswith(".jpg")]
        for name in names[:: len(names) // count][:count]:
            file = archive.extractfile(name)
            assert file is not None
            made.append(Image.open(io.BytesIO(file.read())).convert("RGBA"))
    return made
