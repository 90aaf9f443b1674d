"""JSON from outside as frozen dataclasses, checked by their annotations.

A value of another kind, a missing or an unknown field, a number that isn't finite and a string that can't be printed
are each refused by name; nothing is guessed and nothing is passed over.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

INTEGER_BITS = 63


def parsed(text: str) -> Any:
    """json.loads, without NaN and infinities. ValueError for whatever isn't JSON."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def typed(kind: type[T], value: Any, where: str) -> T:
    """What json.loads gave, as a dataclass. ValueError says where something else was got and what was expected."""
    made: T = _typed(kind, value, where)
    return made


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is Literal:
        return value if value in arguments else _refuse(where, value, f"one of {', '.join(map(str, arguments))}")
    if origin is Mapping:
        _expect(dict, value, where)
        return {_scalar(str, key, where): _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (Sequence, tuple):
        _expect(list, value, where)
        items = [_typed(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    return _scalar(kind, value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(dict, value, where)
    hints = _hints(kind)
    if lacking := sorted(hints.keys() - value.keys()):
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{where} has unknown fields: {', '.join(map(ascii, unknown[:5]))}")
    return kind(**{name: _typed(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    """A string, number or truth value; `Any` takes each of them."""
    if kind is float and type(value) is int and value.bit_length() <= INTEGER_BITS:
        value = float(value)
    if kind not in (Any, type(value)) or not isinstance(value, str | int | float):
        return _refuse(where, value, "a string or a number" if kind is Any else kind.__name__)
    if isinstance(value, str) and not value.isprintable():
        return _refuse(where, value, "printable characters")
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        return _refuse(where, "a very large integer", f"one of {INTEGER_BITS} bits")
    if isinstance(value, float) and not math.isfinite(value):
        return _refuse(where, value, "a finite number")
    return value


def _expect(kind: type, value: Any, where: str) -> None:
    if not isinstance(value, kind):
        _refuse(where, value, "an object" if kind is dict else "a list")


def _refuse(where: str, value: Any, expected: str) -> NoReturn:
    got = ascii(value)
    raise ValueError(f"{where}: got {got if len(got) <= 60 else got[:57] + '...'}; expected {expected}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"got {name}; expected finite numbers")
