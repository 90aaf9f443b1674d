"""Reads Triton model repositories: several folders form one, as several --model-repository do for Triton.

Folders may come from anybody: what can't be read is a finding, sizes are limited, symbolic links are followed.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from cmt_engine.plan_file import Plan
from cmt_pipeline.constants import TRITON_CONFIG_FILE
from cmt_pipeline.triton_config import from_pbtxt
from cmt_server.doctor.artefacts import completes_batching, declared_backend, plans_in, without_model
from cmt_server.doctor.finding import Finding, Rule, finding
from cmt_server.repository import Repository as ServedRepository

VARIANTS_FOLDER = "configs"
MAX_CONFIG_BYTES = 4 << 20
PLAIN_VERSION = r"0|[1-9]\d{0,17}"
MAX_ENTRIES = 10_000  # of a folder
MAX_VERSIONS = 100  # of a model, the newest, that are looked into
MAX_VARIANTS = 16
MAX_STEPS = 1_000  # of an ensemble

UNREADABLE = Rule(
    "unreadable-config",
    "error",
    "Triton doesn't load a model whose configuration isn't its ModelConfig message; the repository index gives no "
    "reason.",
    "Write fields that the message has, in a regular file, and one scheduler at most.",
)
NAME_DIFFERS = Rule(
    "name-differs-from-folder",
    "error",
    "Triton doesn't load a model whose configuration gives another name than its folder.",
    "Make them equal, or leave the name out.",
)
VERSION_FOLDER = Rule(
    "misread-version-folder",
    "error",
    "Triton takes the number in front of a folder's name for a version: '2.bak' is version 2, which it then looks for "
    "in folder 2. A number of more than 64 bits ends the server.",
    "Name version folders by a plain number; keep copies elsewhere, or let their names begin with a letter.",
)
NOT_A_MODEL = Rule(
    "not-a-model",
    "warning",
    "Triton takes every folder of a repository for a model, hidden ones too. Unless models are loaded by name, this "
    "one fails, and the server ends at its start if not told --exit-on-error=false.",
    "Move the folder out of the repository.",
)
DUPLICATE = Rule(
    "model-in-two-folders",
    "error",
    "Without --model-namespacing Triton loads none of the models that share a name, and no ensemble that uses it.",
    "Keep one of them, or rename one.",
)


@dataclass(frozen=True)
class Model:
    """file: where its configuration lies; versions: of the folders that hold it, None when a server described it.

    batching_completed: whether Triton's auto-complete, unless it is off, settles how the model batches; empty: versions
    whose folder has no model; plans: those of TensorRT, by version, or why one can't be read.
    """

    name: str
    file: str
    config: ModelConfig
    versions: tuple[int, ...] | None = None
    batching_completed: bool = False
    empty: tuple[int, ...] = ()
    plans: Mapping[int, Plan | str] = field(default_factory=dict)

    @property
    def is_ensemble(self) -> bool:
        return bool(self.config.platform == "ensemble" or self.config.HasField("ensemble_scheduling"))

    @property
    def is_tensorrt(self) -> bool:
        return declared_backend(self.config) == "tensorrt"

    def loaded_versions(self) -> tuple[int, ...]:
        """The versions lying there that the version policy loads."""
        there, policy = self.versions or (), self.config.version_policy
        if policy.HasField("specific"):
            return tuple(version for version in there if version in policy.specific.versions)
        if policy.HasField("latest"):
            return there[len(there) - min(policy.latest.num_versions, len(there)) :]
        return there if self.config.HasField("version_policy") else there[-1:]


@dataclass(frozen=True)
class Repository:
    """One set of configurations. undeclared: models without a configuration of their own, which Triton completes."""

    models: Mapping[str, Model]
    undeclared: frozenset[str] = frozenset()

    @property
    def ensembles(self) -> Iterator[Model]:
        return (model for model in self.models.values() if model.is_ensemble)

    def has(self, name: str) -> bool:
        return name in self.models or name in self.undeclared


@dataclass
class _Reading:
    """What has been read so far; variants: name of a configuration -> model -> its configuration."""

    models: dict[str, Model] = field(default_factory=dict)
    undeclared: set[str] = field(default_factory=set)
    variants: dict[str, dict[str, Model]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_repositories(folders: Sequence[Path]) -> tuple[list[Repository], list[Finding]]:
    """The repository that these folders form, once for each configuration name; and what couldn't be read.

    The first is what Triton serves by default; each other one what `--model-config-name` makes of it. Raises
    FileNotFoundError for a folder that isn't there.
    """
    reading = _Reading()
    for folder in expanded(folders):
        for path in _entries(folder):
            _read_model(path, reading)
    undeclared = frozenset(reading.undeclared)
    read = [Repository(reading.models, undeclared)]
    read += [Repository(reading.models | reading.variants[name], undeclared) for name in sorted(reading.variants)]
    return read, reading.findings


def expanded(folders: Sequence[Path]) -> list[Path]:
    """The folders, with what this project serves replaced by its parts. FileNotFoundError for one that isn't there."""
    chosen: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"got {folder}; expected the folder of a Triton model repository")
        parts = ServedRepository(folder).model_folders
        for path in parts if all(part.is_dir() for part in parts) else (folder,):
            chosen.setdefault(path.resolve(), path)
    return list(chosen.values())


def parse_config(data: bytes) -> ModelConfig:
    """ValueError, with its cause, if these bytes are no configuration, or one too large to examine."""
    try:
        return sized(from_pbtxt(data.decode()))
    except (text_format.ParseError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def sized(config: ModelConfig) -> ModelConfig:
    """The configuration itself. ValueError for an ensemble of more than MAX_STEPS steps."""
    if len(config.ensemble_scheduling.step) > MAX_STEPS:
        raise ValueError(f"got an ensemble of more than {MAX_STEPS} steps")
    return config


def _entries(folder: Path) -> list[Path]:
    """Subfolders, links to folders among them, in order; the first MAX_ENTRIES of them."""
    with os.scandir(folder) as entries:
        paths = [folder / entry.name for entry in itertools.islice(entries, MAX_ENTRIES) if _is_folder(entry)]
    return sorted(paths)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _read_model(folder: Path, reading: _Reading) -> None:
    name, file = folder.name, folder / TRITON_CONFIG_FILE
    try:
        versions = _versions(folder, reading)
        if not file.exists():
            if versions or (folder / VARIANTS_FOLDER).is_dir():
                reading.undeclared.add(name)
            else:
                what = "it has neither a configuration nor a version's folder"
                reading.findings.append(finding(NOT_A_MODEL, str(folder), name, what))
            return
        model = _model(folder, file, versions)
    except (OSError, ValueError) as error:
        reading.findings.append(finding(UNREADABLE, str(file), name, f"it can't be read: {error}"))
        reading.undeclared.add(name)
        return
    if name in reading.models:
        what = f"the model lies in {reading.models[name].file} as well"
        reading.findings.append(finding(DUPLICATE, str(file), name, what))
        return
    if model.config.name not in ("", name):
        what = f"the configuration is named {model.config.name!r}, its folder {name!r}"
        reading.findings.append(finding(NAME_DIFFERS, str(file), name, what))
    reading.models[name] = model
    _read_variants(folder, versions, reading)


def _versions(folder: Path, reading: _Reading) -> tuple[int, ...]:
    """The versions that a model's folder holds, read as Triton reads them: 0 is one, 01 is none."""
    names = [path.name for path in _entries(folder)]
    plain = {name for name in names if re.fullmatch(PLAIN_VERSION, name)}
    for name in names:
        number = re.match(r"\s*\+?(-?\d+)", name)
        if number and not name.startswith("0") and number[1] not in plain:
            what = f"folder {name!r} is version {number[1]} to Triton"
            reading.findings.append(finding(VERSION_FOLDER, str(folder), folder.name, what))
    return tuple(sorted(map(int, plain)))


def _model(folder: Path, file: Path, versions: tuple[int, ...]) -> Model:
    """ValueError or OSError if the file is no configuration."""
    if not file.is_file():
        raise ValueError("it is no regular file")
    with file.open("rb") as opened:
        data = opened.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(f"got more than {MAX_CONFIG_BYTES} bytes")
    config = parse_config(data)
    looked_into = versions[-MAX_VERSIONS:]
    completes = completes_batching(config, folder, looked_into)
    empty, plans = without_model(config, folder, looked_into), plans_in(folder, looked_into)
    return Model(folder.name, str(file), config, versions, completes, empty, plans)


def _read_variants(folder: Path, versions: tuple[int, ...], reading: _Reading) -> None:
    """Configurations that `--model-config-name` chooses."""
    for file in sorted((folder / VARIANTS_FOLDER).glob("*.pbtxt"))[:MAX_VARIANTS]:
        try:
            variant = _model(folder, file, versions)
        except (OSError, ValueError) as error:
            reading.findings.append(finding(UNREADABLE, str(file), folder.name, f"it can't be read: {error}"))
        else:
            reading.variants.setdefault(file.stem, {})[folder.name] = variant
