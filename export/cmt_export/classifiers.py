"""Published classifiers: what a folder's files say of one, before any weight is read.

Names of classes are those of `id2label`, in its order, or the caller's; never a card's. What can't be composed is
refused here, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt_export.errors import CheckpointError
from cmt_export.family import FAMILIES
from cmt_export.heads import HEADS
from cmt_export.log_linear import DIMENSIONS, Expert, HeadKind
from cmt_export.sources import CONFIG_FILE
from cmt_pipeline.modality import Modality
from cmt_pipeline.synonyms import canonical, is_numbered, places

#: Files by which others know their own formats.
OTHER_FORMATS = {
    "hyperparams.yaml": "SpeechBrain's",
    "configuration.json": "FunASR's or ModelScope's",
    "label_encoder.txt": "SpeechBrain's",
}
DIMENSION_NAMES = ("arousal", "dominance", "valence")
LICENCE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class PublishedClassifier:
    """names: of its classes, in output order; licence: as its card says it, "" where it says none."""

    modality: Modality
    folder: Path
    architecture: str
    model_type: str
    kind: HeadKind
    names: tuple[str, ...]
    licence: str


def read_classifier(modality: Modality, folder: Path, names: Sequence[str] = ()) -> PublishedClassifier:
    """names: the caller's own, in output order, where `id2label` has none. Raises CheckpointError."""
    values = _config(folder)
    model_type, architecture = str(values.get("model_type", "")), next(iter(values.get("architectures") or ()), "")
    where = f"{folder}: {CONFIG_FILE}"
    if values.get("auto_map"):
        raise CheckpointError(
            f"{where} names code of its own ({architecture or 'auto_map'}), which would have to be run; expected a "
            "model of transformers: nothing from elsewhere is executed here"
        )
    if model_type not in FAMILIES:
        raise CheckpointError(f"{where} names the family {model_type!r}; expected one of {', '.join(sorted(FAMILIES))}")
    if (reads := FAMILIES[model_type].modality) != modality:
        raise CheckpointError(f"{where} names {model_type!r}, which reads {reads}; expected one that reads {modality}")
    if architecture not in HEADS:
        raise CheckpointError(
            f"{where} names the architecture {architecture!r}, whose head isn't known; expected one of "
            f"{', '.join(sorted(HEADS))}"
        )
    if (pooling := values.get("pooling_mode", "mean")) != "mean" and "Speech" in architecture:
        raise CheckpointError(f"{where} says pooling_mode {pooling!r}; expected mean")
    found = tuple(names) or _names(values, where)
    return PublishedClassifier(
        modality=modality,
        folder=folder,
        architecture=architecture,
        model_type=model_type,
        kind=_kind(values, architecture, found),
        names=found,
        licence=_licence(folder),
    )


def expert_of(classifier: PublishedClassifier, labels: Sequence[str], own: Mapping[str, str] | None = None) -> Expert:
    """What its outputs mean among the labels. own: a caller's table, name -> label. CheckpointError unless two or more
    labels are told apart."""
    if classifier.kind == "dimensional":
        plain = [canonical(name) for name in classifier.names]
        return Expert("dimensional", tuple(DIMENSIONS.index(name) if name in DIMENSIONS else -1 for name in plain))
    try:
        meant = places(classifier.names, labels, own)
    except ValueError as error:
        raise CheckpointError(f"{classifier.folder}: {error}") from error
    indices = tuple(-1 if (label := meant[name]) is None else list(labels).index(label) for name in classifier.names)
    if len(set(indices) - {-1}) < 2:
        raise CheckpointError(
            f"{classifier.folder} has the classes {', '.join(classifier.names)}, of which fewer than two have a place "
            f"among {', '.join(labels)}; say what they mean (`--synonyms`), or choose another label set"
        )
    return Expert(classifier.kind, indices)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        other = next((whose for name, whose in OTHER_FORMATS.items() if (folder / name).is_file()), None)
        pickles = [file.name for file in folder.glob("*.pt")]
        told = f"files of {other} format" if other else f"{pickles[0]}, a pickle of code" if pickles else "none"
        raise CheckpointError(f"{folder} has no {CONFIG_FILE} of transformers (got {told}); expected one")
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return values


def _names(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Of id2label, in order. CheckpointError where they are none, or where label2id says something else."""
    try:
        by_number = {int(number): str(name) for number, name in dict(values.get("id2label") or {}).items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: id2label is no table of numbers and names: {error}") from error
    names = tuple(by_number[number] for number in sorted(by_number))
    asked = "name them in the order of its outputs: `--names MODALITY=first,second,…`"
    if sorted(by_number) != list(range(len(by_number))) or not names:
        raise CheckpointError(f"{where} has no id2label for every output (got {by_number or 'none'}); {asked}")
    if any(is_numbered(name) for name in names):
        raise CheckpointError(f"{where} calls its classes {', '.join(names)}, which says nothing; {asked}")
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where} gives two classes the same name ({', '.join(names)}); {asked}")
    if clash := _clash(values.get("label2id"), names):
        raise CheckpointError(f"{where} disagrees with itself: id2label is {', '.join(names)}; {clash}; {asked}")
    return names


def _clash(label2id: Any, names: Sequence[str]) -> str:
    """Where label2id isn't the other way round; one of numbered names says nothing, and its numbers may be text."""
    if not isinstance(label2id, dict) or any(is_numbered(str(name)) for name in label2id):
        return ""
    for name, number in label2id.items():
        index = int(number) if str(number).isdigit() else -1
        if not 0 <= index < len(names) or names[index] != name:
            return f"label2id has {name!r} at {number}"
    return ""


def _kind(values: Mapping[str, Any], architecture: str, names: Sequence[str]) -> HeadKind:
    if {canonical(name) for name in names} <= set(DIMENSION_NAMES):
        return "dimensional"
    problem = values.get("problem_type")
    if problem == "regression":
        raise CheckpointError(
            f"got a model of regression for {', '.join(names)}; expected classes, or some of "
            f"{', '.join(DIMENSION_NAMES)}"
        )
    if problem == "multi_label_classification" or "MultiLabel" in architecture:
        return "sigmoid"
    return "softmax"


def _licence(folder: Path) -> str:
    card = folder / "README.md"
    text = card.read_text(errors="replace")[: 1 << 16] if card.is_file() else ""
    front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = LICENCE.search(front)
    return found[1].strip("\"'") if found else ""
