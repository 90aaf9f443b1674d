"""Values from outside, read field by field: each error names the field, what was got and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeGuard

from cmt_session.errors import SessionError

SHOWN = 80  # characters of a wrong value


def object_of(text: str | bytes, most_bytes: int, error: type[SessionError]) -> dict[str, Any]:
    """The one JSON object that a text is; names must be unique, numbers finite."""
    size = len(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    if size > most_bytes:
        raise error(f"got {size:,} bytes; expected at most {most_bytes:,}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name that occurs twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant}, which is no number")

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as wrong:
        raise error(f"got no JSON object ({str(wrong)[:SHOWN]})") from None
    if not isinstance(found, dict):
        raise error(f"got JSON of {type(found).__name__}; expected an object")
    return found


class Fields:
    """The fields of a JSON object. where: its place, for messages; a None counts as absent."""

    def __init__(self, values: Any, where: str, error: type[SessionError], known: Iterable[str]) -> None:
        self.where, self._error = where, error
        if not isinstance(values, Mapping):
            raise error(f"{where}: got {shown(values)}; expected an object")
        if more := sorted(str(name) for name in set(values) - set(known)):
            raise error(f"{where}: got the unknown field {more[0][:SHOWN]!r}; expected {', '.join(known)}")
        self._values = {name: value for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def wrong(self, name: str, expected: str) -> SessionError:
        got = shown(self._values[name]) if name in self._values else "nothing"
        return self._error(f"{self.where}.{name}: got {got}; expected {expected}")

    def raw(self, name: str, kind: type, expected: str) -> Any:
        value = self._values.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise self.wrong(name, expected)
        return value

    def raw_or(self, name: str, kind: type, default: Any) -> Any:
        return self.raw(name, kind, f"JSON of {kind.__name__}") if name in self else default

    def number(self, name: str, least: float, most: float) -> float:
        value = self._values.get(name)
        if not is_number(value) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def maybe(self, name: str, least: float, most: float) -> float | None:
        return self.number(name, least, most) if name in self else None

    def count(self, name: str, most: int) -> int:
        value = self.raw(name, int, f"a whole number from 0 to {most}")
        if not 0 <= value <= most:
            raise self.wrong(name, f"a whole number from 0 to {most}")
        return int(value)

    def text(self, name: str, most: int) -> str:
        value = self.raw(name, str, f"a text of at most {most} characters")
        if len(value) > most or not value.isprintable():
            raise self.wrong(name, f"a printable text of at most {most} characters")
        return str(value)

    def numbers(self, name: str, length: int, least: float, most: float) -> tuple[float, ...]:
        """Exactly length numbers; none at all where the field is empty."""
        values = self.raw(name, list, f"{length} numbers")
        if len(values) not in (0, length) or not all(is_number(v) and least <= v <= most for v in values):
            raise self.wrong(name, f"{length} numbers from {least:g} to {most:g}, or none")
        return tuple(map(float, values))

    def shares(self, name: str, length: int) -> tuple[float, ...]:
        """Numbers that are together 1."""
        values = self.numbers(name, length, 0, 1)
        if values and abs(math.fsum(values) - 1) > 1e-6:
            raise self.wrong(name, "numbers that are together 1")
        return values

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        values = self.raw(name, list, f"at most {most} texts")
        if len(values) > most or not all(isinstance(v, str) and len(v) <= longest for v in values):
            raise self.wrong(name, f"at most {most} texts of at most {longest} characters")
        return tuple(values)


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and no bool; numpy's count too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def shown(value: Any) -> str:
    try:
        text = ascii(value)
    except ValueError:  # an integer of thousands of digits
        text = type(value).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
