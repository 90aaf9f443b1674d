"""Images: the same pixels as Hugging Face's processor, upright and RGB; anything else is refused, unharmed."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.image import ACCEPTED, DecodingRoom, ImagePreprocessor, decode_image, decode_square
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ORIENTATION = 0x0112  # EXIF tag
#: orientation -> what a camera that was held so did to the upright picture
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def noise(width: int = 60, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def plain(mode: str, colour: Any, **options: Any) -> bytes:
    return saved(Image.new(mode, (32, 32), colour), **options)


def png_with(more: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    data = saved(noise())
    return data[:33] + more + data[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of an 8-bit RGB image whose pixels fill no more than a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def animation(format_: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    return saved(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)


def webp_that_says(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is said to be larger than its frames."""
    data = bytearray(animation("WEBP"))
    at = data.index(b"VP8X") + 12  # behind the chunk's name, size and flags
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def refusal(data: bytes, limits: Limits | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        decode_image(data, limits or Limits())
    assert raised.value.field == "image"
    return raised.value


def by_hand(image: Image.Image, mean: Any, std: Any) -> Array:
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float64) / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), IMAGENET], ids=["half", "imagenet"])
@pytest.mark.parametrize("size", [(60, 40), (224, 224), (500, 16)])
def test_pixels_are_scaled_and_normalised(mean: Any, std: Any, size: tuple[int, int]) -> None:
    came = ImagePreprocessor(mean, std)(saved(noise(*size)))
    assert list(came) == ["pixel_values"]
    assert (came["pixel_values"].dtype, came["pixel_values"].shape) == (np.float32, (3, 224, 224))
    np.testing.assert_allclose(came["pixel_values"], by_hand(noise(*size), mean, std), atol=2e-6)


@pytest.mark.parametrize("size", [(300, 200), (40, 90)])
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import ViTImageProcessorPil

    wanted = ViTImageProcessorPil()(noise(*size), return_tensors="np")["pixel_values"][0]
    came = ImagePreprocessor(HALF, HALF)(saved(noise(*size)))["pixel_values"]
    np.testing.assert_allclose(came, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("format_", "options"), [("PNG", {}), ("PPM", {}), ("WEBP", {"lossless": True})], ids=["PNG", "PPM", "WebP"]
)
def test_lossless_files_keep_every_pixel(format_: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode_image(saved(noise(), format_, **options)), noise())


@pytest.mark.parametrize(
    ("format_", "options"),
    [("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("WEBP", {"quality": 95})],
)
def test_lossy_files_stay_close(format_: str, options: dict[str, Any]) -> None:
    came = np.asarray(decode_image(saved(noise(), format_, **options)), int)
    assert np.abs(came - np.asarray(noise(), int)).mean() < 3


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright(orientation: int, format_: str) -> None:
    upright = noise()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    came = decode_image(saved(stored, format_, exif=exif, quality=95, lossless=True))
    assert came.size == upright.size
    difference = np.abs(np.asarray(came, int) - np.asarray(upright, int))
    assert difference.mean() < (4 if format_ == "JPEG" else 1e-9)


def test_an_orientation_that_is_none_changes_nothing() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    np.testing.assert_array_equal(decode_image(saved(noise(), exif=exif)), noise())


def palette(**options: Any) -> bytes:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return saved(image, **options)


PIXELS = {
    "grey": (plain("L", 100), (100, 100, 100)),
    "white": (plain("1", 1), (255, 255, 255)),
    "black": (plain("1", 0), (0, 0, 0)),
    "grey16": (plain("I;16", 0x64FF), (100, 100, 100)),
    "white16": (plain("I;16", 0xFFFF), (255, 255, 255)),
    "ppm16": (b"P5 32 32 65535\n" + b"\x64\xff" * 1024, (100, 100, 100)),
    "palette": (palette(), (10, 200, 30)),
    "palette-other-clear": (palette(transparency=0), (10, 200, 30)),
    "palette-clear": (palette(transparency=1), (255, 255, 255)),
    "palette-half": (palette(transparency=bytes([255, 128])), (132, 227, 142)),
    "rgb": (plain("RGB", (10, 20, 30)), (10, 20, 30)),
    "rgb-clear": (plain("RGB", (10, 20, 30), transparency=(10, 20, 30)), (255, 255, 255)),
    "rgb-other-clear": (plain("RGB", (10, 20, 30), transparency=(11, 20, 30)), (10, 20, 30)),
    "grey-clear": (plain("L", 100, transparency=100), (255, 255, 255)),
    "rgba": (plain("RGBA", (255, 0, 0, 255)), (255, 0, 0)),
    "rgba-clear": (plain("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
    "rgba-half": (plain("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
    "webp-clear": (plain("RGBA", (255, 0, 0, 0), format_="WEBP", lossless=True), (255, 255, 255)),
    "la": (plain("LA", (100, 255)), (100, 100, 100)),
    "la-clear": (plain("LA", (100, 0)), (255, 255, 255)),
    "cmyk": (plain("CMYK", (0, 255, 255, 0), format_="JPEG", quality=100), (254, 0, 0)),
    "grey-jpeg": (plain("L", 100, format_="JPEG", quality=100), (100, 100, 100)),
}


def webp_with_exif(image: Image.Image, exif: bytes) -> bytes:
    return saved(image, "WEBP", exif=exif, lossless=True)


ODD_METADATA = {
    "png-exif-quoted": saved(noise(), exif=b"b'Exif\\x00\\x00II*\\x00'"),
    "png-exif-cut": saved(noise(), exif=b"Exif\0\0II*\0\xff\xff"),
    "webp-exif-garbage": webp_with_exif(noise(), b"garbage!"),
    "png-profile-2MB": saved(noise(), icc_profile=np.random.default_rng(0).bytes(1000) * 2000),
    "png-text-2MB": png_with(chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000)),
}


@pytest.mark.parametrize("data", ODD_METADATA.values(), ids=ODD_METADATA)
def test_metadata_doesnt_decide_over_pixels(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data), noise())
    decode_square(data, 16)


def test_an_oddly_typed_tag_beside_the_orientation_is_ignored() -> None:
    """ResolutionUnit as text, which Pillow can read and not write."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    tagged = bytearray(exif.tobytes())
    stored = noise().transpose(Image.Transpose.ROTATE_90)
    entry = struct.pack("<HHI4s", 0x0128, 2, 4, b"inch")
    at = tagged.index(b"II*\0") + 8 if b"II*\0" in tagged else tagged.index(b"MM\0*") + 8
    if b"MM\0*" in tagged:
        entry = struct.pack(">HHI4s", 0x0128, 2, 4, b"inch")
        tagged[at : at + 2] = struct.pack(">H", 2)
    else:
        tagged[at : at + 2] = struct.pack("<H", 2)
    tagged[at + 14 : at + 14] = entry
    assert (
        abs(np.asarray(decode_image(saved(stored, "JPEG", exif=bytes(tagged), quality=95)), int) - noise()).mean() < 4
    )


@pytest.mark.parametrize("mode", ["I", "I;16"])
@pytest.mark.parametrize(("highest", "shift"), [(255, 0), (256, 8), (65_535, 8)])
def test_integer_greys_are_scaled_by_what_is_there(mode: str, highest: int, shift: int) -> None:
    values = np.linspace(0, highest, 40 * 60).round().reshape(40, 60)
    wide = Image.fromarray(values.astype(np.int32 if mode == "I" else np.uint16))
    assert wide.mode == mode
    rgb = np.asarray(decode_image(saved(wide, "PPM" if mode == "I" else "PNG")))
    np.testing.assert_array_equal(rgb[..., 0], values.astype(int) >> shift)


@pytest.mark.parametrize(("data", "rgb"), PIXELS.values(), ids=PIXELS)
def test_every_kind_of_pixel_becomes_rgb_on_white(data: bytes, rgb: tuple[int, int, int]) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    np.testing.assert_allclose(np.asarray(image, int), np.broadcast_to(rgb, (32, 32, 3)), atol=1)


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format_: str) -> None:
    np.testing.assert_array_equal(np.asarray(decode_image(animation(format_)))[0, 0], (255, 0, 0))


@pytest.mark.parametrize("format_", ["ICO", "TGA", "JPEG2000", "DDS", "PCX", "SGI"])
def test_other_formats_are_refused(format_: str) -> None:
    """Each decoder that is open to strangers is one more that can be attacked."""
    error = refusal(saved(noise(32, 32), format_))
    assert (error.code, error.message.split("; ")[1]) == ("not_decodable", f"expected {ACCEPTED}")


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "PPM"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(format_: str, part: float) -> None:
    data = saved(noise(300, 200), format_)
    error = refusal(data[: int(part * len(data))])
    assert error.code == "not_decodable"


@pytest.mark.parametrize(
    "data", [b"\0", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"P6\n", b"RIFF"], ids=repr
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refusal(data).code == "not_decodable"


def test_no_bytes_at_all_are_told_apart() -> None:
    error = refusal(b"")
    assert (error.code, error.message) == ("empty", f"got 0 bytes; expected {ACCEPTED}")


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_tiny_images_are_refused(size: tuple[int, int]) -> None:
    error = refusal(saved(Image.new("RGB", size)))
    assert error.code == "too_small"
    assert error.message == f"got {size[0]} x {size[1]} pixels; each side needs at least 16"
    assert decode_image(saved(Image.new("RGB", (16, 16)))).size == (16, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png_that_says(12_000, 12_000),
        png_that_says(60_000, 60_000),
        png_that_says(2**31 - 1, 2**31 - 1),
        png_that_says(50_000_001, 16),
        webp_that_says(12_000, 12_000),
        b"P6\n12000 12000\n255\n",
    ],
    ids=["12k", "60k", "2G", "long", "webp", "ppm"],
)
def test_a_bomb_is_refused_by_its_declared_size(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a pixel is decoded: decoding 12,000 x 12,000 takes seconds and 430 MB."""

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refusal(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 20_000
    assert error.code == "too_large"
    assert "16000000" in error.message


def test_the_limit_on_pixels_is_exact() -> None:
    limits = Limits(max_image_pixels=60 * 40)
    assert decode_image(saved(noise(60, 40)), limits).size == (60, 40)
    assert refusal(saved(noise(61, 40)), limits).message == ("got 61 x 40 pixels; at most 2400 are accepted: shrink it")


def test_a_bomb_in_the_metadata_is_refused() -> None:
    """A comment that unpacks to far more than it takes."""
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 20_000_000))
    data = saved(noise())
    assert refusal(data[:33] + comment + data[33:]).code == "not_decodable"


def test_too_many_bytes_are_refused_unread() -> None:
    data = saved(noise())
    error = refusal(data, Limits(max_image_bytes=len(data) - 1))
    assert error.code == "too_large"
    assert error.message == f"got {len(data)} bytes; at most {len(data) - 1} are accepted: shrink it"
    assert decode_image(data, Limits(max_image_bytes=len(data))).size == (60, 40)


preprocess = ImagePreprocessor(HALF, HALF)
FILES = [
    saved(noise()),
    saved(noise(), "JPEG"),
    saved(noise(), "JPEG", progressive=True),
    saved(noise(), "WEBP"),
    saved(noise(20, 17), "PPM"),
    palette(transparency=1),
    animation("WEBP"),
    animation("PNG"),
    plain("I;16", 500),
]


def outcome(data: bytes) -> Array | InvalidInput:
    try:
        return preprocess(data)["pixel_values"]
    except InvalidInput as error:
        return error


edits = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), max_size=8)


def mutated(data: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    """Some bytes overwritten, most of them near the beginning, and perhaps the end cut off."""
    changed = bytearray(data)
    for position, new in changes:
        at = position % min(len(changed), 64 + position % len(changed))
        changed[at : at + len(new)] = new
    return bytes(changed[: len(changed) - cut % len(changed)])


hostile = st.binary(max_size=300) | st.builds(mutated, st.sampled_from(FILES), edits, st.just(0) | st.integers(0, 999))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(hostile)
def test_whatever_comes_is_prepared_or_refused(data: bytes) -> None:
    came = outcome(data)
    if isinstance(came, InvalidInput):
        assert came.field == "image"
        assert came.code in {"empty", "not_decodable", "too_large", "too_small"}
    else:
        assert (came.dtype, came.shape) == (np.float32, (3, 224, 224))
        assert np.isfinite(came).all()


def large(format_: str, side: int = 1_500, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    """A file of an image with detail on every scale, as photographs have, that is shrunk while it is decoded."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64):
        noise_ = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise_.resize((side, side), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    total -= total.min()
    return saved(Image.fromarray((total * (255 / total.max())).astype(np.uint8)).convert(mode), format_, **options)


def shrunk_and_whole(data: bytes) -> Array:
    """By how much the pixels of an image that may be shrunk before it is resampled differ from those of the whole."""
    whole = decode_image(data)
    pixels = np.asarray(whole.resize((224, 224), Image.Resampling.BILINEAR), int)
    return np.abs(np.asarray(decode_square(data, 224), int) - pixels)


@pytest.mark.parametrize(
    ("format_", "mode", "side", "options"),
    [
        ("JPEG", "RGB", 1_501, {"quality": 90}),
        ("JPEG", "L", 3_000, {"quality": 90}),
        ("JPEG", "CMYK", 1_401, {"quality": 95}),
        ("PNG", "RGB", 1_500, {"compress_level": 1}),
        ("PNG", "RGBA", 1_353, {"compress_level": 1}),
        ("PNG", "P", 1_353, {"compress_level": 1}),
        ("WEBP", "RGB", 1_353, {"method": 0}),
        ("PPM", "RGB", 2_100, {}),
    ],
)
def test_shrinking_before_resampling_changes_a_photo_by_a_level_or_two(
    format_: str, mode: str, side: int, options: dict[str, Any]
) -> None:
    differences = shrunk_and_whole(large(format_, side, mode=mode, **options))
    assert differences.any()
    assert differences.max() <= (5 if mode == "P" else 2)  # a palette makes noise of colours that it lacks
    assert differences.mean() <= 0.5


def test_shrinking_before_resampling_changes_noise_by_little() -> None:
    """The worst there is: every pixel is independent of its neighbours."""
    differences = shrunk_and_whole(saved(noise(2_001, 1_501), "PPM"))
    assert differences.mean() <= 1.5


@pytest.mark.parametrize("orientation", STORED)
def test_a_shrunk_image_is_upright(orientation: int) -> None:
    image = Image.open(io.BytesIO(large("PPM"))).crop((0, 0, 1_400, 701))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert shrunk_and_whole(saved(image, "JPEG", exif=exif, quality=95)).max() <= 2


def test_a_small_image_is_not_shrunk() -> None:
    assert not shrunk_and_whole(large("JPEG", 1_343, quality=90)).any()


def test_a_tiny_file_of_50_megapixels_is_refused_by_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("I;16", (10_000, 5_000)))
    assert len(data) < 200_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert refusal(data).code == "too_large"


#: Bytes for each declared pixel that preparing an image may take beyond what its decoder does for one of 90,000.
PEAK_BYTES_A_PIXEL = {"PNG": 4, "WEBP": 18}

PEAK = """
import resource, sys
from cmt_pipeline.image import ImagePreprocessor
prepare = ImagePreprocessor((0.5,) * 3, (0.5,) * 3)
small, large = (open(path, "rb").read() for path in sys.argv[1:])
prepare(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(large)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(("format_", "mode"), [("PNG", "I;16"), ("WEBP", "RGB")])
def test_15_megapixels_take_the_memory_that_is_stated(tmp_path: Path, format_: str, mode: str) -> None:
    files = []
    for side in ((300, 300), (5_000, 3_000)):
        path = tmp_path / f"{side[0]}"
        options = {"method": 0} if format_ == "WEBP" else {"compress_level": 1}
        path.write_bytes(saved(Image.new(mode, side, 500 if mode == "I;16" else (1, 2, 3)), format_, **options))
        files.append(str(path))
    told = subprocess.run([sys.executable, "-c", PEAK, *files], check=True, capture_output=True, text=True)
    assert int(told.stdout) < PEAK_BYTES_A_PIXEL[format_] * 15_000_000


def test_no_more_is_decoded_at_once_than_there_is_room_for() -> None:
    room = DecodingRoom(100)
    inside: list[int] = []
    seen: list[list[int]] = []

    def decode(pixels: int) -> None:
        with room.take(pixels):
            inside.append(pixels)
            seen.append(list(inside))
            inside.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40, 70, 100, 1, 1000, 30, 60, 90] * 50))
    assert len(seen) == 400
    assert all(sum(at_once) <= 100 or at_once == [1000] for at_once in seen)


def test_a_large_image_is_not_overtaken_for_ever() -> None:
    room = DecodingRoom(100)
    order: list[str] = []

    def decode(name: str, pixels: int) -> None:
        with room.take(pixels):
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with room.take(50):
            large = pool.submit(decode, "large", 100)
            while not room._turn.locked():  # until it waits for its turn
                time.sleep(0.001)
            small = pool.submit(decode, "small", 1)
            assert not order
        large.result(30)
        small.result(30)
    assert order == ["large", "small"]
