"""The length that a sound file's header says, set against what came.

A recorder that is cut off, or writes to a pipe, leaves headers that say nothing, or more than there is. libsndfile
believes them, and answers with less sound, or none.

WAV: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0"; RF64: EBU Tech 3306;
FLAC: RFC 9639, section 8.2; AIFF: Apple, "Audio Interchange File Format", 1989; MP4 and its kin: ISO/IEC 14496-12,
section 4.2; WebM and Matroska: RFC 8794, RFC 9559; Ogg: RFC 3533, section 6; CAF: Apple, "Core Audio Format
Specification 1.0".
"""

from __future__ import annotations

import struct

from cmt_pipeline.errors import InvalidInput

#: What writers to a pipe put where the size belongs: ffmpeg 0xFFFFFFFF, sox 0x7FFFF000 and more, others 0.
STREAMED_FROM = 0x7FFFF000
RF64_SIZE_ELSEWHERE = 0xFFFFFFFF
CHUNK = struct.Struct("<4sI")

BOX = struct.Struct(">I4s")
WIDE = struct.Struct(">Q")
CAF_CHUNK = struct.Struct(">4sq")
OGG_PAGE, OGG_HEADER_BYTES = b"OggS", 27  # the last of which says how many segments' sizes follow
SEGMENT = b"\x18\x53\x80\x67"

FLAC_RATE = slice(18, 21)  # 20 bits, before 4 of other things
FLAC_SAMPLES = slice(21, 26)  # the 36 bits of STREAMINFO's total, behind 4 of other things
FLAC_SAMPLES_MASK = (1 << 36) - 1


def with_wav_length(data: bytes) -> bytes:
    """The file, whose header says what there is where it was a stream's; anything but a WAV as it is.

    InvalidInput where the header says more than came: the file was cut.
    """
    if data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        return data
    place, wide = 12, 0
    while place + CHUNK.size <= len(data):
        name, size = CHUNK.unpack_from(data, place)
        begin = place + CHUNK.size
        if name == b"ds64" and len(data) >= begin + 16:
            (wide,) = struct.unpack_from("<Q", data, begin + 8)
        if name == b"data":
            if size == RF64_SIZE_ELSEWHERE and wide:
                _check_whole(wide, len(data) - begin)
                return data
            if 0 < size < STREAMED_FROM:
                _check_whole(size, len(data) - begin)
                return data
            head = bytearray(data[:begin])
            head[:4] = b"RIFF"
            CHUNK.pack_into(head, place, b"data", len(data) - begin)
            struct.pack_into("<I", head, 4, len(data) - 8)
            if head[12:16] == b"ds64":
                head[12:16] = b"JUNK"
            return bytes(head) + data[begin:]
        place = begin + size + size % 2
    return data


def with_flac_length(data: bytes, most_s: float) -> bytes:
    """The file, which says one sample more than `most_s` seconds have where it says none; any other as it is.

    libsndfile reads one to its end, however much less that is, but none that says nothing.
    """
    if data[:4] != b"fLaC" or len(data) < FLAC_SAMPLES.stop:
        return data
    packed = int.from_bytes(data[FLAC_SAMPLES], "big")
    if packed & FLAC_SAMPLES_MASK:
        return data
    most = int(most_s * (int.from_bytes(data[FLAC_RATE], "big") >> 4)) + 1
    return data[: FLAC_SAMPLES.start] + (packed | most).to_bytes(5, "big") + data[FLAC_SAMPLES.stop :]


def check_whole(data: bytes) -> None:
    """InvalidInput where an AIFF or Ogg file says that more follows than came; any other passes."""
    if data[:4] == b"FORM":
        _check_aiff(data)
    elif data[:4] == OGG_PAGE:
        _check_ogg(data)


def _check_aiff(data: bytes) -> None:
    place = 12
    while place + BOX.size <= len(data):
        size, name = struct.unpack_from(">I", data, place + 4)[0], data[place : place + 4]
        if name == b"SSND":
            _check_whole(size, len(data) - place - BOX.size)
        place += BOX.size + size + size % 2


def _check_ogg(data: bytes) -> None:
    """Page by page, up to what is no page."""
    place = 0
    while data[place : place + 4] == OGG_PAGE:
        table = place + OGG_HEADER_BYTES
        segments = data[table - 1] if table <= len(data) else 0
        body = table + segments
        size = body + sum(data[table:body]) - place
        _check_whole(size, len(data) - place, spare=0)
        place += size


def check_caf(data: bytes) -> None:
    """InvalidInput where a CAF says that it has more sound than came."""
    place = 8
    while place + CAF_CHUNK.size <= len(data):
        name, size = CAF_CHUNK.unpack_from(data, place)
        place += CAF_CHUNK.size
        if size < 0:  # to the end
            return
        if name == b"data":
            _check_whole(size, len(data) - place)
        place += size


def check_boxes(data: bytes) -> None:
    """InvalidInput where an MP4 lacks the end of a box, or its index, which a recorder writes last."""
    place, names = 0, set()
    while place + BOX.size <= len(data):
        size, name = BOX.unpack_from(data, place)
        if size == 1 and place + BOX.size + WIDE.size <= len(data):
            (size,) = WIDE.unpack_from(data, place + BOX.size)
        size = size or len(data) - place  # 0: to the end
        if size < BOX.size or not name.isalnum():
            break
        names.add(name)
        _check_whole(size, len(data) - place)
        place += size
    if b"moov" not in names:
        raise InvalidInput("audio", "cut", "got a file without its index (moov); expected the whole recording")


def check_segment(data: bytes) -> None:
    """InvalidInput where a WebM lacks the end of its segment; one of unknown size was a stream."""
    size, place = _vint(data, 4)
    place += size or 0
    if data[place : place + 4] == SEGMENT:
        size, place = _vint(data, place + 4)
        if size is not None:
            _check_whole(size, len(data) - place)


def _vint(data: bytes, place: int) -> tuple[int | None, int]:
    """An EBML size, None for the unknown one, and where it ends."""
    length = 9 - data[place].bit_length() if place < len(data) else 9
    value = int.from_bytes(data[place : place + length], "big") - (1 << 7 * length)
    return None if length > 8 or value == (1 << 7 * length) - 1 else value, place + length


def _check_whole(said: int, came: int, spare: int = 1) -> None:
    """spare: the byte that pads to an even size is often left out."""
    if said > came + spare:
        raise InvalidInput(
            "audio",
            "cut",
            f"got {came} of the {said} bytes that the file's header says follow; expected the whole file",
        )
