"""Registries: things that are looked up by name, this project's own and those of installed packages.

A package adds one by an entry point, whose name is the thing's and whose object is the thing itself:

    [project.entry-points."cmt_triton.engines"]
    mine = "my_package:MINE"
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """`what`: the kind's name in messages; `group`: of entry points; `kind`: the class of its things.

    own: things by name, or where they are as entry points say it (`module:object`), imported when first asked for. No
    package can take an own name.
    """

    def __init__(self, what: str, group: str, kind: type[Any], own: Mapping[str, T | str]) -> None:
        self.what, self.group, self._kind, self._own = what, group, kind, own

    def __getitem__(self, name: str) -> T:
        """ValueError for an unknown name, for one that two packages offer, and for a package's that doesn't import."""
        own = self._own.get(name)
        if own is not None:
            return cast(T, EntryPoint(name, own, self.group).load()) if isinstance(own, str) else own
        found = {point.value: point for point in self._points() if point.name == name}
        if not found:
            raise ValueError(f"{self.what}: got {name!r}; expected one of {', '.join(self)}")
        if len(found) > 1:
            raise ValueError(f"{self.what} {name!r} is offered as {' and as '.join(found)}; uninstall one of them")
        return self._loaded(*found.values())

    def __contains__(self, name: object) -> bool:
        return name in self._own or any(name == known for known in self)

    def __iter__(self) -> Iterator[str]:
        """Names, own ones first."""
        return iter(dict.fromkeys((*self._own, *sorted(point.name for point in self._points()))))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def sources(self) -> list[Path]:
        """The files of the modules that packages' entry points name; none of them is run."""
        specs = [importlib.util.find_spec(point.module) for point in self._points()]
        return sorted({Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None})

    def _points(self) -> list[EntryPoint]:
        return [point for point in entry_points(group=self.group) if point.name not in self._own]

    def _loaded(self, point: EntryPoint) -> T:
        where = f"{self.what} {point.name!r}, the entry point {point.value} of {self.group},"
        try:
            thing = point.load()
        except Exception as error:  # a foreign module may fail in any way
            raise ValueError(f"{where} can't be imported: {type(error).__name__}: {error}") from error
        if not isinstance(thing, self._kind):
            raise ValueError(f"{where} is {type(thing).__name__}; expected an object of {self._kind.__name__}")
        return cast(T, thing)
