"""Dockerfiles, read as far as ours go: stages, and ARG, ENV, WORKDIR, COPY, RUN, USER and ENTRYPOINT of one.

https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Read over: of the registry, or of what the manifests say again.
WITHOUT_FILES = frozenset({"EXPOSE", "STOPSIGNAL", "VOLUME", "LABEL"})


@dataclass(frozen=True)
class Copy:
    """Of the repository's files into the image: `sources`, relative to its root, to the path `target`."""

    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Run:
    """A command of the shell, with what is set where it runs."""

    command: str
    variables: Mapping[str, str]
    folder: str


@dataclass
class Stage:
    """One FROM and what follows. base: an image, or the name of a stage before; user: that its containers run as."""

    base: str
    name: str = ""
    steps: list[Copy | Run] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    user: str = "0:0"
    folder: str = "/"


def read_dockerfile(path: Path, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """Its stages. arguments: as `--build-arg`. ValueError for what isn't read here."""
    stages: list[Stage] = []
    known: dict[str, str] = {}  # ARG, as it is said by now
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in filter(None, map(str.strip, text.replace("\\\n", " ").splitlines())):
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "ARG":
            name, _, default = rest.partition("=")
            known[name] = (arguments or {}).get(name, known.get(name, default))
        elif word == "FROM":
            base, _, name = _filled(rest, known).partition(" AS ")
            before = next((stage for stage in stages if stage.name == base), None)
            inherited = {} if before is None else {"variables": dict(before.variables), "folder": before.folder}
            stages.append(Stage(base, name, **inherited))  # type: ignore[arg-type]  # they are those two
        elif not stages:
            raise ValueError(f"{path}: got {word} before FROM; expected ARG or FROM")
        else:
            _add(stages[-1], word, rest, known, path)
    return stages


def _add(stage: Stage, word: str, rest: str, known: Mapping[str, str], path: Path) -> None:
    if word == "WORKDIR":
        stage.folder = rest
    elif word == "ENV":
        name, _, value = rest.partition("=")
        stage.variables[name] = value
    elif word == "COPY":
        *sources, target = rest.split()
        stage.steps.append(Copy(tuple(sources), posixpath.normpath(posixpath.join(stage.folder, target))))
    elif word == "RUN":
        stage.steps.append(Run(rest, {**known, **stage.variables}, stage.folder))
    elif word == "USER":
        stage.user = rest
    elif word == "ENTRYPOINT":
        stage.entrypoint = tuple(json.loads(rest))
    elif word not in WITHOUT_FILES:
        raise ValueError(f"{path}: got {word}; expected an instruction that is read here")


def _filled(text: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: known[match[1]], text)
