"""What a stage says of a request that it doesn't answer, and how that crosses the wire.

Triton carries an error as text. `to_wire` and `from_wire` keep what a program needs readable inside it.
"""

from __future__ import annotations

import re
from typing import Literal

_INVALID = re.compile(r"invalid_input\(([a-z_]+)\.([a-z_]+)\): (.*)", re.DOTALL)
_OVERLOADED = re.compile(r"overloaded\(([a-z_]+), retry_after_s=([0-9.]+)\): (.*)", re.DOTALL)

#: queue: it would wait longer than the service lets anybody wait; deadline: longer than its caller does; memory: its
#: bytes find no room beside those that are being decoded.
OverloadCode = Literal["queue", "deadline", "memory"]


DRAINING = "draining: this server is being stopped; ask again, and another one answers"


class InvalidInput(ValueError):
    """A value the service doesn't take.

    field: the offending input (`image`, `audio`, `text`, or a tensor's name); code: what is wrong with it, for
    programs (`too_large`, `not_decodable`, …); the message says what was got, what is accepted and how to fix it.
    """

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, str, str]]:
        return type(self), (self.field, self.code, self.message)

    def to_wire(self) -> str:
        return f"invalid_input({self.field}.{self.code}): {self.message}"

    @classmethod
    def from_wire(cls, text: str) -> InvalidInput | None:
        """The InvalidInput inside a server's error text, or None if there is none."""
        found = _INVALID.search(text)
        return cls(*found.groups()) if found else None


class Overloaded(Exception):
    """A sound request that is refused because of what waits before it; neither side is at fault.

    code: an OverloadCode, for programs; retry_after_s: when another try may find room.
    """

    field = "load"  # what counters of refusals say

    def __init__(self, code: str, retry_after_s: float, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.message = message

    def to_wire(self) -> str:
        return f"overloaded({self.code}, retry_after_s={self.retry_after_s:.2f}): {self.message}"

    @classmethod
    def from_wire(cls, text: str) -> Overloaded | None:
        """The Overloaded inside a server's error text, or None if there is none."""
        found = _OVERLOADED.search(text)
        return cls(found[1], float(found[2]), found[3]) if found else None
