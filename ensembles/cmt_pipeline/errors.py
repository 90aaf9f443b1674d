"""InvalidInput: what preprocessing says of input it can't take, and how that crosses the wire.

Triton carries an error as text. `to_wire` and `from_wire` keep the field and code readable to a program inside it.
"""

from __future__ import annotations

import re

_WIRE = re.compile(r"invalid_input\(([a-z_]+)\.([a-z_]+)\): (.*)", re.DOTALL)


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
        found = _WIRE.search(text)
        return cls(*found.groups()) if found else None
