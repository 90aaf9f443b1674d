"""Every kind of picture file that is accepted gives the picture that was put in; independent decoders agree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.image import Fit, decode_image, decode_square
from media.pictures import HEIGHT, PICTURES, WIDTH, difference, saved

SMALL = Fit(side=32, resize=32)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: made.make() for name, made in PICTURES.items()}


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_that_was_put_in_comes_out(files: dict[str, bytes], name: str) -> None:
    made = PICTURES[name]
    assert difference(np.asarray(decode_image(files[name])), made) <= made.error
    small = np.asarray(decode_square(files[name], SMALL), float)
    truth = np.asarray(decode_square(PICTURES["PNG, grey" if made.grey else "PNG"].make(), SMALL), float)
    assert np.abs(small - truth).mean() <= made.error + 0.5


@pytest.mark.parametrize(
    ("name", "suffix", "command"),
    [
        ("HEIC", "heic", "heif-convert"),
        ("AVIF", "avif", "avifdec"),
        ("TIFF, LZW", "tif", "tiff2rgba -c none"),
        ("GIF", "gif", "convert"),
        ("BMP", "bmp", "convert"),
        ("JPEG, CMYK", "jpg", "convert"),
        ("WebP", "webp", "convert"),
    ],
)
def test_an_independent_decoder_agrees(
    files: dict[str, bytes], tmp_path: Path, name: str, suffix: str, command: str
) -> None:
    tool = command.split()[0]
    if not shutil.which(tool):
        pytest.skip(f"no {tool} here")
    path, out = tmp_path / f"in.{suffix}", tmp_path / ("out.tif" if tool == "tiff2rgba" else "out.png")
    path.write_bytes(files[name])
    done = subprocess.run([*command.split(), str(path), str(out)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{tool}: {done.stderr[-200:]}")
    with Image.open(out) as image:
        theirs = np.asarray(image.convert("RGB"), float)
    assert np.abs(theirs - np.asarray(decode_image(files[name]), float)).mean() < 1.5


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "TIFF, pages"])
def test_a_cut_file_is_refused(files: dict[str, bytes], name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode_image(files[name][: len(files[name]) // 2])
    assert raised.value.code == "not_decodable"


@pytest.mark.long
@pytest.mark.parametrize("format_", ["GIF", "BMP", "TIFF", "AVIF"])
def test_a_declared_size_over_the_limit_is_refused_before_it_is_decoded(format_: str) -> None:
    data = saved(format_, Image.new("L", (5_000, 4_000)))
    with pytest.raises(InvalidInput) as raised:
        decode_image(data)
    assert raised.value.code == "too_large"


def test_floats_that_arent_finite_are_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        decode_image(saved("TIFF", Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32))))
    assert raised.value.code == "not_finite"
