"""Keeps a client that goes away from taking Triton 2.51 with it.

When a client's deadline passes, or its connection breaks, Triton cancels the request. Seen on 2.51: the queue of a
dynamic batcher then refuses that request's step while a parallel one is in flight, and the server dies of a
segmentation fault; one client with a short time-out is enough. (A refused step beside others is fixed upstream in
2.66.) No option turns this off.

So the server is started with a library before its own whose `TRITONSERVER_InferenceRequestCancel` does nothing: the
request runs to its end and its answer is thrown away. The library is one function that returns null, written here as an
ELF file byte by byte (System V ABI, "Object Files" and "Dynamic Linking"), because a machine that serves has no
compiler.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from cmt_release.durable import replace_file

FUNCTION = "TRITONSERVER_InferenceRequestCancel"
LIBRARY = "libcmt_no_cancel.so"

#: Machine -> ELF's number of it, largest page, and `return 0` in its code.
MACHINES = {
    "x86_64": (62, 0x1000, bytes.fromhex("f30f1efa 31c0 c3")),  # endbr64; xor eax, eax; ret
    "aarch64": (183, 0x10000, bytes.fromhex("000080d2 c0035fd6")),  # mov x0, 0; ret
}

LOAD, DYNAMIC, GNU_STACK = 1, 2, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4
HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME = 4, 5, 6, 10, 11, 14
HEADER_BYTES, SEGMENT_BYTES, SYMBOL_BYTES = 64, 56, 24
GLOBAL_FUNCTION = 0x12
ANY_SECTION = 1


def write_no_cancel(folder: Path) -> Path | None:
    """Writes the library into a folder; None on machines that it isn't known for."""
    machine = platform.machine()
    if machine not in MACHINES:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / LIBRARY, shared_object(machine), folder)
    return folder / LIBRARY


def shared_object(machine: str) -> bytes:
    """An ELF shared object whose one function, FUNCTION, returns null. KeyError for an unknown machine."""
    number, page, code = MACHINES[machine]
    names = b"\0" + FUNCTION.encode() + b"\0" + LIBRARY.encode() + b"\0"
    start = HEADER_BYTES + 4 * SEGMENT_BYTES
    at_code = start
    at_symbols = _aligned(at_code + len(code))
    at_hash = at_symbols + 2 * SYMBOL_BYTES
    table = struct.pack("<5I", 1, 2, 1, 0, 0)  # one bucket that leads to symbol 1
    at_names = at_hash + len(table)
    end = at_names + len(names)

    symbols = bytes(SYMBOL_BYTES) + struct.pack("<IBBHQQ", 1, GLOBAL_FUNCTION, 0, ANY_SECTION, at_code, len(code))
    entries = {
        HASH: at_hash,
        SYMTAB: at_symbols,
        STRTAB: at_names,
        STRSZ: len(names),
        SYMENT: SYMBOL_BYTES,
        SONAME: 2 + len(FUNCTION),
    }
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries.items()) + bytes(16)
    segments = (
        _segment(LOAD, READ | EXECUTE, 0, end, page),
        _segment(LOAD, READ | WRITE, page, len(dynamic), page),
        _segment(DYNAMIC, READ | WRITE, page, len(dynamic), 8),
        _segment(GNU_STACK, READ | WRITE, 0, 0, 16),
    )
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    header = identity + struct.pack(
        "<HHIQQQIHHHHHH", 3, number, 1, 0, HEADER_BYTES, 0, 0, HEADER_BYTES, SEGMENT_BYTES, len(segments), 0, 0, 0
    )
    read_only = header + b"".join(segments) + code.ljust(at_symbols - at_code, b"\0") + symbols + table + names
    return read_only.ljust(page, b"\0") + dynamic


def _segment(kind: int, flags: int, offset: int, size: int, alignment: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, size, size, alignment)


def _aligned(offset: int) -> int:
    return -(-offset // 8) * 8
