"""What a TensorRT plan says of itself, read without TensorRT and without a GPU.

A plan opens with a tag, a size and the version that made it; trtexec reads the version from the same place
(`--getPlanVersionOnly`, NVIDIA/TensorRT samples/common/sampleEngines.cpp). Behind the header lies a table of
the engine's inputs and outputs. That table's layout isn't documented: it is as seen in plans of TensorRT for
RTX 1.7, and where it isn't recognised no tensors are reported, rather than guessed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

PLAN_FILE = "model.plan"  # the name that Triton's TensorRT backend looks for

#: tag, format, size of the plan in bytes, version in four numbers
HEADER = struct.Struct("<4s4xQQ4B")
TENSORRT_TAG, RTX_TAG = b"ftrt", b"vtrt"

TABLE_BYTES = 1 << 20  # the table lies within the first few kilobytes

#: A tensor: its name (a 64-bit length before it), its data type, later its rank and its dimensions.
TENSOR = re.compile(rb"([\w./]+)\x1c\x80\x01\x00\x03\x80\x01\x00\x00\x0d\x80\x01\x00\x07\x80\x01\x00(.{4})", re.DOTALL)
DIMENSIONS = re.compile(rb"\x59\x80\x01\x00\x07\x80\x01\x00(.{4})\x01\x80\x09\x80\x01\x00(.{8})", re.DOTALL)
DIMENSIONS_WITHIN = 256  # bytes behind the name

DATA_TYPES = {0: "FP32", 1: "FP16", 3: "INT32", 7: "BF16", 8: "INT64"}  # tensorrt.DataType


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine. dims: with batch, -1 where the length varies."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    def describe(self) -> str:
        return f"{self.name} {self.dtype} {list(self.dims)}"


@dataclass(frozen=True)
class Plan:
    """version: of TensorRT or TensorRT for RTX; tensors: empty where the table isn't recognised."""

    rtx: bool
    version: str
    size_bytes: int
    tensors: tuple[EngineTensor, ...]

    @property
    def flavour(self) -> str:
        """The Python package that opens it."""
        return "tensorrt_rtx" if self.rtx else "tensorrt"


def read_plan(path: Path) -> Plan:
    """Reads the header and the table. ValueError if it is no plan, or a part of one."""
    with path.open("rb") as file:
        head = file.read(TABLE_BYTES)
    size = path.stat().st_size
    if len(head) < HEADER.size or head[:4] not in (TENSORRT_TAG, RTX_TAG):
        raise ValueError(f"{path} opens with {head[:4]!r}; a TensorRT plan opens with {RTX_TAG!r} or {TENSORRT_TAG!r}")
    tag, _, declared, *version = HEADER.unpack_from(head)
    if tag == RTX_TAG and declared != size:
        raise ValueError(f"{path} has {size} bytes; its header says {declared}: it was cut off or changed")
    return Plan(tag == RTX_TAG, ".".join(map(str, version)), size, _tensors(head))


def _tensors(head: bytes) -> tuple[EngineTensor, ...]:
    found: dict[str, EngineTensor] = {}
    for match in TENSOR.finditer(head):
        name, dtype = match[1], struct.unpack("<i", match[2])[0]
        dims = DIMENSIONS.search(head, match.end(), match.end() + DIMENSIONS_WITHIN)
        if head[match.start() - 8 : match.start()] != struct.pack("<Q", len(name)) or dims is None:
            continue
        rank = struct.unpack("<i", dims[1])[0]
        sizes = struct.unpack_from(f"<{rank}q", head, dims.end())
        # A size that varies is the negative number of a symbol.
        tensor = EngineTensor(name.decode(), DATA_TYPES.get(dtype, str(dtype)), tuple(max(s, -1) for s in sizes))
        found.setdefault(tensor.name, tensor)
    return tuple(sorted(found.values(), key=lambda tensor: tensor.name))
