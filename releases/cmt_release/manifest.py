"""manifest.json: what a release is, with the digest and size of every file.

A manifest may come from elsewhere: whatever it says is checked before it is believed. Its digest is the release's
content address.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cmt_pipeline.modality import MODALITIES, Modality, ordered
from cmt_pipeline.release_info import ReleaseInfo
from cmt_pipeline.stages import STAGES
from cmt_pipeline.tensors import Sizes, TensorSpec, resolved
from cmt_release.typed_json import parsed, typed

MANIFEST_FILE = "manifest.json"
STAGES_FOLDER = "stages"
GOLDEN_FOLDER = "golden"
FORMAT = 3
MAX_MANIFEST_BYTES = 4 << 20
MAX_PATH_CHARACTERS = 512
MAX_TOKENS, MAX_WIDTH = 4096, 8192  # of features

SHA256 = re.compile(r"[0-9a-f]{64}")


class ReleaseError(RuntimeError):
    """A release is missing, damaged or can't be written; the message says which file and how to go on."""


@dataclass(frozen=True)
class StageVersion:
    """version: the release that brought these files; digest: over all of them; files: path -> sha256."""

    version: int
    digest: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class GoldenAnswer:
    """What the source answers in fp32 for the release's own samples, by pipeline."""

    modalities: tuple[Modality, ...]
    probabilities: Mapping[str, float]
    valence: float
    arousal: float


@dataclass(frozen=True)
class Tensor:
    """dtype: Triton's name of it; dims: without batch, -1 where the length varies."""

    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class StageTensors:
    """Inputs and outputs of a stage, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights in a release: of which modality, from where (a hub's id with its revision, a folder, a
    package), the digest of their files, and the licence that their card names ("": none)."""

    modality: str
    source: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Manifest:
    """What a release is.

    source: `pytorch`, or `onnx` where the graphs were given; golden: its answers in fp32 to the release's own samples,
    whose sha256 is in golden_files, by modality;
    golden_tolerance: the largest absolute difference of any probability that the precision is allowed;
    preprocess: `cmt_pipeline.preprocess.fingerprint`; features: how many tokens, how wide; tensors: the contract with
    that width and the label count filled in;
    sizes: bytes of every file, by sha256; recipe: digest of all that went into the release, to know it again
    without building; published: weights that are part of it, whose licences go on to hold.
    """

    info: ReleaseInfo
    source: str
    stages: Mapping[str, StageVersion]
    features: Sizes
    tensors: Mapping[str, StageTensors]
    preprocess: str
    parity: Sequence[Mapping[str, Any]]
    golden: Sequence[GoldenAnswer]
    golden_files: Mapping[str, str]
    golden_tolerance: float
    sizes: Mapping[str, int]
    versions: Mapping[str, str]
    recipe: str
    published: tuple[PublishedWeights, ...]

    @property
    def number(self) -> int:
        return self.info.release

    @property
    def files(self) -> dict[str, str]:
        """Every file but manifest.json: path in the release folder -> sha256."""
        stages = {f"{STAGES_FOLDER}/{s}/{path}": sha for s in self.stages for path, sha in self.stages[s].files.items()}
        return stages | {f"{GOLDEN_FOLDER}/{name}": sha256 for name, sha256 in self.golden_files.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest's text: the release's content address."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "a manifest") -> Manifest:
        """The manifest of a text that `source` gave. ReleaseError says what is wrong with it."""
        try:
            values = parsed(text)
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
            if (got := values.pop("format", None)) != FORMAT:
                raise ValueError(
                    f"got a manifest of format {ascii(got)[:20]}; this version reads format {FORMAT}: export again"
                )
            manifest = typed(cls, values, "manifest")
            _check(manifest)
        except ValueError as error:
            raise ReleaseError(f"{source}: {error}") from None
        return manifest


def manifest_from_bytes(data: bytes, source: str) -> Manifest:
    """The manifest of bytes that `source` gave. ReleaseError when they are too many or no manifest."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ReleaseError(f"{source} has more than {MAX_MANIFEST_BYTES:,} bytes, which no manifest has")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ReleaseError(f"{source} is no manifest: {error}") from None
    return Manifest.from_json(text, source)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a file. ReleaseError names the file and says what is wrong with it."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ReleaseError(f"{path} is no plain file; export or pull the release again")
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ReleaseError(f"{path} can't be read ({error.strerror}); export or pull the release again") from error
    return manifest_from_bytes(data, str(path))


def digest_of_files(files: Mapping[str, str]) -> str:
    """The digest of a stage version: over the paths and sha256 of its files."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def contract_tensors(labels: int, width: int) -> dict[str, StageTensors]:
    """The contract's tensors of every stage, as a model of so many labels and features so wide has them."""

    def tensor(spec: TensorSpec) -> Tensor:
        return Tensor(spec.dtype, resolved(spec, labels, width))

    return {
        name: StageTensors(
            {spec.name: tensor(spec) for spec in stage.inputs}, {spec.name: tensor(spec) for spec in stage.outputs}
        )
        for name, stage in STAGES.items()
    }


def _check(manifest: Manifest) -> None:
    """ValueError for what no release can be, whatever its files."""
    if manifest.number < 1:
        raise ValueError(f"release: got {manifest.number}; expected 1 or more")
    for name, found in (("stages", manifest.stages), ("tensors", manifest.tensors)):
        if wrong := sorted(found.keys() ^ STAGES.keys()):
            raise ValueError(f"{name} are unknown or missing: {', '.join(wrong)}; expected {', '.join(STAGES)}")
    if not manifest.info.modalities or manifest.info.modalities != ordered(manifest.info.modalities):
        raise ValueError(
            f"modalities: got {manifest.info.modalities}; expected some of {', '.join(MODALITIES)}, in order"
        )
    for m in MODALITIES:
        tokens = manifest.features.tokens(m)
        if not tokens or list(tokens) != sorted(set(tokens)) or tokens[0] < 1 or tokens[-1] > MAX_TOKENS:
            raise ValueError(f"features.{m}: got {ascii(tokens)[:80]}; expected rising numbers from 1 to {MAX_TOKENS}")
    if not 1 <= manifest.features.width <= MAX_WIDTH:
        raise ValueError(f"features.width: got {manifest.features.width}; expected 1 to {MAX_WIDTH}")
    for name, stage in manifest.stages.items():
        _check_files(f"stage {name}", stage.files)
        if stage.digest != (digest := digest_of_files(stage.files)):
            raise ValueError(f"stage {name} has the digest {stage.digest}; its files give {digest}")
        if not 1 <= stage.version <= manifest.number:
            raise ValueError(f"stage {name} has version {stage.version}; expected 1 to {manifest.number}")
        if STAGES[name].stamped and stage.version != manifest.number:
            raise ValueError(
                f"stage {name} has version {stage.version}; expected {manifest.number}, as it says which release "
                "answers: export again"
            )
    if wrong := sorted(manifest.golden_files.keys() - set(MODALITIES)):
        raise ValueError(f"golden_files names {', '.join(wrong)}; expected some of {', '.join(MODALITIES)}")
    _check_files("golden_files", manifest.golden_files)
    if any(not manifest.golden_files.keys() >= set(answer.modalities) for answer in manifest.golden):
        raise ValueError("golden has answers to files that golden_files doesn't name")
    if wrong := sorted(manifest.sizes.keys() ^ set(manifest.files.values())):
        raise ValueError(f"sizes are unknown or missing: {', '.join(wrong[:3])}; expected those of every file")
    if any(size < 0 for size in manifest.sizes.values()):
        raise ValueError("sizes has a negative number of bytes")


def _check_files(where: str, files: Mapping[str, str]) -> None:
    for path, sha256 in files.items():
        if fault := path_fault(path):
            raise ValueError(f"{where} has the path {path[:MAX_PATH_CHARACTERS]!r}, which {fault}")
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"{where} has {sha256[:80]!r} for {path!r}; expected a sha256 in 64 hexadecimal digits")
        parents = [parent.as_posix() for parent in Path(path).parents][:-1]
        if clash := next((parent for parent in parents if parent in files), None):
            raise ValueError(f"{where} has {clash!r} both as a file and as a folder")


def path_fault(path: str) -> str | None:
    """Why a path from a manifest can't be a file below a stage's folder, or None."""
    if path.startswith("/"):
        return "is absolute"
    if len(path) > MAX_PATH_CHARACTERS:
        return f"is longer than {MAX_PATH_CHARACTERS} characters"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "leaves its folder or names a folder"
    if "\\" in path or not path.isprintable():
        return "has a backslash or characters that can't be printed"
    return None
