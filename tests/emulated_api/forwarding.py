"""Port forwarding over a websocket, as the API server answers the official Python client: one port, frames unmasked
on the way back."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import select
import socket
import struct
from typing import BinaryIO

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BINARY, CLOSE = 2, 8
DATA, ERROR = b"\x00", b"\x01"


def accept_key(key: str) -> str:
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()


def forward(near: socket.socket, incoming: BinaryIO, port: int, address: tuple[str, int]) -> None:
    """Until either end closes."""
    number = struct.pack("<H", port)
    for channel in (DATA, ERROR):
        near.sendall(_frame(channel + number))
    with contextlib.suppress(OSError, EOFError), socket.create_connection(address, timeout=5) as far:
        far.settimeout(None)
        while True:
            ready, _, _ = select.select([near, far], [], [])
            if far in ready:
                data = far.recv(1 << 15)
                if not data:
                    break
                near.sendall(_frame(DATA + data))
            if near in ready:
                opcode, data = _read(incoming)
                if opcode == CLOSE:
                    break
                if opcode == BINARY and data[:1] == DATA:
                    far.sendall(data[1:])
    with contextlib.suppress(OSError):
        near.sendall(_frame(b"", CLOSE))
        near.settimeout(1)
        while near.recv(1 << 15):  # its client answers a close before it hangs up
            pass


def _frame(data: bytes, opcode: int = BINARY) -> bytes:
    head = bytes([0x80 | opcode])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 1 << 16:
        return head + b"\x7e" + struct.pack(">H", len(data)) + data
    return head + b"\x7f" + struct.pack(">Q", len(data)) + data


def _read(incoming: BinaryIO) -> tuple[int, bytes]:
    """One masked frame; the file must not buffer, or `select` wouldn't see what it holds."""
    first, second = exactly(incoming, 2)
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack(">H", exactly(incoming, 2))
    elif size == 127:
        (size,) = struct.unpack(">Q", exactly(incoming, 8))
    mask = exactly(incoming, 4)
    data = exactly(incoming, size)
    whole = int.from_bytes(data, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return first & 0x0F, whole.to_bytes(size, "big")


def exactly(incoming: BinaryIO, size: int) -> bytes:
    """Bytes of a file that doesn't buffer. EOFError where it ends before."""
    data = b""
    while len(data) < size:
        more = incoming.read(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
