"""What tritonserver is started with before its own libraries: a library that keeps clients and secrets from harm.

Cancelling does nothing. When a client's deadline passes, or its connection breaks, Triton cancels the request. Seen on
2.51: the queue of a dynamic batcher then refuses that request's step while a parallel one is in flight, and the server
dies of a segmentation fault; one client with a short time-out is enough. (A refused step beside others is fixed
upstream in 2.66.) No option turns this off, so `TRITONSERVER_InferenceRequestCancel` returns null: the request runs to
its end and its answer is thrown away.

Arguments are hidden. Triton takes the keys of its restricted APIs on its command line alone, which every local user may
read in /proc. The command line that the kernel shows has placeholders in their place; the arguments stand at the head
of the environment, which only the same user may read, and the library's initialiser, called before `main`, makes
`argv` point there.

The library is written here as an ELF file byte by byte (System V ABI, "Object Files" and "Dynamic Linking"), because a
machine that serves has no compiler.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmt_release.durable import replace_file

FUNCTION = "TRITONSERVER_InferenceRequestCancel"
LIBRARY = "libcmt_preload.so"
#: What stands in a hidden argument's place; the code below knows its eight bytes, and the length of VARIABLE and "=".
PLACEHOLDER = "--hidden"
VARIABLE = "CMT_HIDE_{}"


@dataclass(frozen=True)
class Machine:
    """number: ELF's of it; page: its largest; cancel, hide: the code of the function and of the initialiser.

    hide(argc, argv, envp): while the last argument not yet looked at starts with PLACEHOLDER, it becomes the value of
    the next variable of the environment.
    """

    number: int
    page: int
    cancel: bytes
    hide: bytes


MACHINES = {
    "x86_64": Machine(
        number=62,
        page=0x1000,
        cancel=bytes.fromhex("f30f1efa 31c0 c3"),  # endbr64; xor eax, eax; ret
        hide=bytes.fromhex(
            "f30f1efa 4863ff"  # endbr64; movsxd rdi, edi
            "48b9 2d2d68696464656e"  # movabs rcx, PLACEHOLDER
            "48ffcf 781a"  # again: dec rdi; js end
            "488b04fe 483b08 7511"  # mov rax, [rsi+rdi*8]; cmp rcx, [rax]; jne end
            "488b02 4883c00b"  # mov rax, [rdx]; add rax, 11
            "488904fe 4883c208 ebe1"  # mov [rsi+rdi*8], rax; add rdx, 8; jmp again
            "c3"  # end: ret
        ),
    ),
    "aarch64": Machine(
        number=183,
        page=0x10000,
        cancel=bytes.fromhex("000080d2 c0035fd6"),  # mov x0, 0; ret
        hide=bytes.fromhex(
            "007c4093"  # sxtw x0, w0
            "a3a585d2 032dadf2 838cccf2 a3ccedf2"  # movz, movk x3, PLACEHOLDER
            "000400f1 24010054"  # again: subs x0, x0, 1; b.mi end
            "247860f8 850040f9"  # ldr x4, [x1, x0, lsl 3]; ldr x5, [x4]
            "bf0003eb a1000054"  # cmp x5, x3; b.ne end
            "458440f8 a52c0091"  # ldr x5, [x2], 8; add x5, x5, 11
            "257820f8 f7ffff17"  # str x5, [x1, x0, lsl 3]; b again
            "c0035fd6"  # end: ret
        ),
    ),
}

LOAD, DYNAMIC, GNU_STACK = 1, 2, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4
HASH, STRTAB, SYMTAB, STRSZ, SYMENT, INIT, SONAME = 4, 5, 6, 10, 11, 12, 14
HEADER_BYTES, SEGMENT_BYTES, SYMBOL_BYTES = 64, 56, 24
GLOBAL_FUNCTION = 0x12
ANY_SECTION = 1


def hidden(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Placeholders to end a command line with, and what to begin its environment with, for arguments to be hidden."""
    variables = {VARIABLE.format(index): argument for index, argument in enumerate(reversed(arguments))}
    return [PLACEHOLDER] * len(arguments), variables


def write_preload(folder: Path) -> Path | None:
    """Writes the library into a folder; None on machines that it isn't known for."""
    machine = platform.machine()
    if machine not in MACHINES:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / LIBRARY, shared_object(machine), folder)
    return folder / LIBRARY


def shared_object(machine: str) -> bytes:
    """An ELF shared object with FUNCTION and the initialiser. KeyError for an unknown machine."""
    found = MACHINES[machine]
    page = found.page
    names = b"\0" + FUNCTION.encode() + b"\0" + LIBRARY.encode() + b"\0"
    start = HEADER_BYTES + 4 * SEGMENT_BYTES
    at_hide = start + _aligned(len(found.cancel))
    at_symbols = _aligned(at_hide + len(found.hide))
    at_hash = at_symbols + 2 * SYMBOL_BYTES
    table = struct.pack("<5I", 1, 2, 1, 0, 0)  # one bucket that leads to symbol 1
    at_names = at_hash + len(table)
    end = at_names + len(names)

    symbols = bytes(SYMBOL_BYTES) + struct.pack("<IBBHQQ", 1, GLOBAL_FUNCTION, 0, ANY_SECTION, start, len(found.cancel))
    entries = {
        HASH: at_hash,
        SYMTAB: at_symbols,
        STRTAB: at_names,
        STRSZ: len(names),
        SYMENT: SYMBOL_BYTES,
        INIT: at_hide,
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
        "<HHIQQQIHHHHHH", 3, found.number, 1, 0, HEADER_BYTES, 0, 0, HEADER_BYTES, SEGMENT_BYTES, len(segments), 0, 0, 0
    )
    code = found.cancel.ljust(at_hide - start, b"\0") + found.hide.ljust(at_symbols - at_hide, b"\0")
    read_only = header + b"".join(segments) + code + symbols + table + names
    return read_only.ljust(page, b"\0") + dynamic


def _segment(kind: int, flags: int, offset: int, size: int, alignment: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, size, size, alignment)


def _aligned(offset: int) -> int:
    return -(-offset // 8) * 8
