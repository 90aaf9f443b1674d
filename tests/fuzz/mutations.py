"""Files damaged as chance and malice would: mutations that know headers, lengths and checksums, but no format whole."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from random import Random

MOST_BYTES = 1 << 20
BEYOND_ANY_LIMIT = 17 << 20
BEYOND_SHARE = 0.002  # of the inputs grow that far
HEADER_BYTES = 256
MUTATIONS_AT_ONCE = (1, 1, 1, 2, 2, 3, 5, 8, 16)

#: Values at which lengths and signs turn over, by how many bytes they take.
EXTREMES = {
    size: tuple({0, 1, 2, 16, 255} | {(1 << bits) + off & (1 << 8 * size) - 1 for bits in bits_of for off in (-1, 0)})
    for size, bits_of in {1: (7, 8), 2: (8, 15, 16), 4: (16, 24, 30, 31, 32), 8: (32, 36, 53, 63, 64)}.items()
}
WRITTEN = (b"0", b"-1", b"1e999", b"255", b"256", b"65536", b"2147483648", b"9223372036854775808", b"1" * 5000)
CODE = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")  # as the boxes and chunks of most containers are named
NUMBER = re.compile(rb"-?\d+")
PAGE = b"OggS"

Mutation = Callable[[bytearray, bytes, Random], None]


def mutated(data: bytes, other: bytes, random: Random) -> bytes:
    """A damaged copy. other: another file, parts of which get in."""
    out = bytearray(data)
    for _ in range(random.choice(MUTATIONS_AT_ONCE)):
        random.choice(MUTATIONS)(out, other, random)
        del out[MOST_BYTES:]
    if random.random() < BEYOND_SHARE:
        out += bytes(BEYOND_ANY_LIMIT - len(out))
    return _with_checksums(out) if random.random() < 0.8 else bytes(out)


def _flip_bits(out: bytearray, _: bytes, random: Random) -> None:
    for _i in range(random.choice((1, 2, 8))):
        if out:
            out[_place(out, random)] ^= 1 << random.randrange(8)


def _set_extreme(out: bytearray, _: bytes, random: Random) -> None:
    _write_extreme(out, _place(out, random), random.choice(tuple(EXTREMES)), random)


def _set_field(out: bytearray, _: bytes, random: Random) -> None:
    """The number before or behind what looks like the name of a box."""
    found = [match.start() for match in CODE.finditer(bytes(out[: 1 << 16]))]
    if found:
        place = random.choice(found) + random.choice((-4, 4, 8, 12, 16))
        _write_extreme(out, max(place, 0), random.choice((2, 4, 4, 8)), random)


def _set_number(out: bytearray, _: bytes, random: Random) -> None:
    """A number that is written in digits."""
    if found := list(NUMBER.finditer(bytes(out[: 1 << 16]))):
        out[slice(*random.choice(found).span())] = random.choice(WRITTEN)


def _truncate(out: bytearray, _: bytes, random: Random) -> None:
    del out[_place(out, random) :]


def _cut_front(out: bytearray, _: bytes, random: Random) -> None:
    del out[: _place(out, random)]


def _splice(out: bytearray, other: bytes, random: Random) -> None:
    """Begins as one file and goes on as another."""
    out[_place(out, random) :] = other[_place(other, random) :]


def _overwrite(out: bytearray, other: bytes, random: Random) -> None:
    block, place = _block(other, random), _place(out, random)
    out[place : place + len(block)] = block


def _insert(out: bytearray, other: bytes, random: Random) -> None:
    block = random.choice((_block(other, random), _block(bytes(out), random), bytes(random.choice((1, 4, 1024)))))
    place = _place(out, random)
    out[place:place] = block


def _remove(out: bytearray, _: bytes, random: Random) -> None:
    place = _place(out, random)
    del out[place : place + _length(out, random)]


def _grow(out: bytearray, _: bytes, random: Random) -> None:
    """A block again and again."""
    block, place = _block(bytes(out), random), _place(out, random)
    out[place:place] = block * min(random.choice((2, 16, 256, 4096)), MOST_BYTES // max(len(block), 1))


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _set_extreme,
    _set_extreme,
    _set_field,
    _set_field,
    _set_number,
    _truncate,
    _cut_front,
    _splice,
    _overwrite,
    _insert,
    _remove,
    _grow,
)


def _place(data: bytes | bytearray, random: Random) -> int:
    """As often in the header as anywhere."""
    return random.randrange(min(len(data), HEADER_BYTES if random.random() < 0.5 else len(data)) or 1)


def _length(data: bytes | bytearray, random: Random) -> int:
    return min(random.choice((1, 2, 4, 8, 64, 512, 4096)), len(data))


def _block(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[place : place + _length(data, random)]


def _write_extreme(out: bytearray, place: int, size: int, random: Random) -> None:
    value = random.choice(EXTREMES[size]).to_bytes(size, random.choice(("little", "big")))
    out[place : place + size] = value


def _with_checksums(out: bytearray) -> bytes:
    """Checksums that fit, where a decoder reads nothing that has a wrong one: those of PNG and Ogg."""
    if out[1:4] == b"PNG":
        _fit_png(out)
    elif out[:4] == PAGE:
        _fit_ogg(out)
    return bytes(out)


def _fit_png(out: bytearray) -> None:
    place = 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place : place + 4], "big")
        out[end : end + 4] = zlib.crc32(out[place + 4 : end]).to_bytes(4, "big") if end + 4 <= len(out) else b""
        place = end + 4


def _fit_ogg(out: bytearray) -> None:
    """RFC 3533, section 6."""
    begins = [match.start() for match in re.finditer(PAGE, out)]
    for begin, end in zip(begins, [*begins[1:], len(out)], strict=True):
        if end - begin >= 27:
            out[begin + 22 : begin + 26] = bytes(4)
            out[begin + 22 : begin + 26] = _ogg_checksum(out[begin:end]).to_bytes(4, "little")


def _ogg_checksum(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ OGG_TABLE[value >> 24 ^ byte]
    return value


def _ogg_entry(value: int) -> int:
    value <<= 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


OGG_TABLE = tuple(_ogg_entry(value) for value in range(256))
