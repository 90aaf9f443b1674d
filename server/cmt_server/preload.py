"""What tritonserver is started with before its own libraries: a library that keeps clients and secrets from harm.

Cancelling does nothing. When a client's deadline passes, or its connection breaks, Triton cancels the request. Seen on
2.51: the queue of a dynamic batcher then refuses that request's step while a parallel one is in flight, and the server
dies of a segmentation fault; one client with a short time-out is enough. (A refused step beside others is fixed
upstream in 2.66.) No option turns this off, so `TRITONSERVER_InferenceRequestCancel` returns null: the request runs to
its end and its answer is thrown away.

Records of models aren't reused at once. Triton frees the record of a model that was replaced while the thread that
destroyed the model has still to look in a map of records by address (`ModelLifeCycle::CreateModel`'s deleter, after it
has marked the model unloaded). Where a new record got that address meanwhile, the thread frees it, and the one that
loads by it dies of a segmentation fault: seen on 2.51, on busy machines, in four of 130 loads of a release under
traffic. C++'s sized delete keeps the last RECORDS_KEPT blocks of RECORD_BYTES, and frees the oldest one in exchange.

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

    keep: that of sized delete, in parts, each of which ends in the distance to the next of the counter, the blocks kept
    and the address of free; none where it isn't known.

    hide(argc, argv, envp): while the last argument not yet looked at starts with PLACEHOLDER, it becomes the value of
    the next variable of the environment.
    """

    number: int
    page: int
    cancel: bytes
    hide: bytes
    keep: tuple[bytes, ...] = ()
    absolute: int = 0  # the relocation that writes a symbol's address


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
        keep=(
            bytes.fromhex(
                "f30f1efa 4881fe 18030000 751d"  # endbr64; cmp rsi, RECORD_BYTES; jne away
                "b801000000 f00fc105"  # mov eax, 1; lock xadd [counter], eax
            ),
            bytes.fromhex("25ff000000 488d15"),  # and eax, RECORDS_KEPT - 1; lea rdx, [blocks]
            bytes.fromhex("48873cc2 ff25"),  # xchg [rdx+rax*8], rdi; away: jmp [free]
        ),
        absolute=6,
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

#: `operator delete(void*, unsigned long)`, and what Triton 2.51 on x86-64 calls it with for a ModelInfo.
DELETE, FREE = "_ZdlPvm", "free"
RECORD_BYTES, RECORDS_KEPT = 0x318, 256

LOAD, DYNAMIC, GNU_STACK = 1, 2, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4
HASH, STRTAB, SYMTAB, RELA, RELASZ, RELAENT, STRSZ, SYMENT, INIT, SONAME = 4, 5, 6, 7, 8, 9, 10, 11, 12, 14
HEADER_BYTES, SEGMENT_BYTES, SYMBOL_BYTES, RELOCATION_BYTES = 64, 56, 24, 24
GLOBAL_FUNCTION = 0x12
UNDEFINED, ANY_SECTION = 0, 1


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
    """An ELF shared object with FUNCTION, DELETE where it is known, and the initialiser. KeyError for an unknown
    machine."""
    found = MACHINES[machine]
    page = found.page
    functions = [FUNCTION, DELETE] if found.keep else [FUNCTION]
    imported = [FREE] if found.keep else []
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*functions, *imported, LIBRARY))

    start = HEADER_BYTES + 4 * SEGMENT_BYTES
    at_hide = start + _aligned(len(found.cancel))
    at_keep = at_hide + _aligned(len(found.hide))
    keep_bytes = sum(len(part) + 4 for part in found.keep)
    at_symbols = at_keep + _aligned(keep_bytes)
    count = 1 + len(functions) + len(imported)
    at_relocations = at_symbols + count * SYMBOL_BYTES
    at_hash = at_relocations + len(imported) * RELOCATION_BYTES
    # one bucket that leads to symbol 1, which leads to the next function
    chain = [0, *range(2, len(functions) + 1), 0, *(0 for _ in imported)]
    table = struct.pack(f"<3I{count}I", 1, count, 1, *chain)
    at_names = at_hash + len(table)
    end = at_names + len(names)

    entries = {
        HASH: at_hash,
        SYMTAB: at_symbols,
        STRTAB: at_names,
        STRSZ: len(names),
        SYMENT: SYMBOL_BYTES,
        INIT: at_hide,
        SONAME: names.index(LIBRARY.encode()),
    }
    if imported:
        entries |= {RELA: at_relocations, RELASZ: RELOCATION_BYTES, RELAENT: RELOCATION_BYTES}
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries.items()) + bytes(16)
    at_free = page + len(dynamic)  # what is written while it runs: the address of free, a counter, the blocks kept
    at_counter, at_blocks = at_free + 8, at_free + 16
    written = 16 + 8 * RECORDS_KEPT if found.keep else 0
    keep = _with_distances(found.keep, at_keep, (at_counter, at_blocks, at_free))

    places = {FUNCTION: (start, len(found.cancel)), DELETE: (at_keep, len(keep)), FREE: (0, 0)}
    symbols = bytes(SYMBOL_BYTES)
    for name in (*functions, *imported):
        section = ANY_SECTION if name in functions else UNDEFINED
        symbols += struct.pack(
            "<IBBHQQ", names.index(name.encode() + b"\0"), GLOBAL_FUNCTION, 0, section, *places[name]
        )
    relocations = b"".join(struct.pack("<QQq", at_free, (count - 1) << 32 | found.absolute, 0) for _ in imported)

    segments = (
        _segment(LOAD, READ | EXECUTE, 0, end, page),
        _segment(LOAD, READ | WRITE, page, len(dynamic) + written, page),
        _segment(DYNAMIC, READ | WRITE, page, len(dynamic), 8),
        _segment(GNU_STACK, READ | WRITE, 0, 0, 16),
    )
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    header = identity + struct.pack(
        "<HHIQQQIHHHHHH", 3, found.number, 1, 0, HEADER_BYTES, 0, 0, HEADER_BYTES, SEGMENT_BYTES, len(segments), 0, 0, 0
    )
    code = found.cancel.ljust(at_hide - start, b"\0") + found.hide.ljust(at_keep - at_hide, b"\0")
    code += keep.ljust(at_symbols - at_keep, b"\0")
    read_only = header + b"".join(segments) + code + symbols + relocations + table + names
    return read_only.ljust(page, b"\0") + dynamic + bytes(written)


def _with_distances(parts: Sequence[bytes], place: int, targets: Sequence[int]) -> bytes:
    """The parts, each followed by how far its target is from there on."""
    code = b""
    for part, target in zip(parts, targets, strict=False):
        code += part
        code += struct.pack("<i", target - (place + len(code) + 4))
    return code


def _segment(kind: int, flags: int, offset: int, size: int, alignment: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, size, size, alignment)


def _aligned(offset: int) -> int:
    return -(-offset // 8) * 8
