"""Names of labels: those of a data set, and where each has its place in a label set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cmt_pipeline.labels import LABEL_SETS, SEPARATOR, checked_labels, labels_of
from cmt_pipeline.synonyms import is_numbered, places
from cmt_training.examples import DataError, DataSet


def label_set_of(names: Iterable[str], where: str) -> str:
    """The registered label set of just these labels, else their own, in alphabetic order. DataError for bad names."""
    found = sorted(set(names))
    if numbers := [name for name in found if is_numbered(name)]:
        raise DataError(
            f"{where}: got the labels {', '.join(numbers[:5])}; expected names: what a number means differs from one "
            "data set to the next. Write the names instead"
        )
    for name in LABEL_SETS:
        if set(labels_of(name)) == set(found):
            return name
    try:
        return SEPARATOR.join(checked_labels(found))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def relabelled(data: DataSet, label_set: str) -> DataSet:
    """The data set with the labels of a set; examples whose label has no place in it are left out and counted.

    DataError if a label that was named on its own (`joy,anger`) isn't there, and if nothing is left.
    """
    own = labels_of(data.label_set)
    found = places(own, labels_of(label_set))
    there = {label for label in found.values() if label is not None}
    absent = [label for label in labels_of(label_set) if label not in there]
    if not there or (absent and SEPARATOR in label_set):
        raise DataError(f"got labels {', '.join(absent)} for {data.name}; expected some of {', '.join(own)}")
    examples = tuple(
        replace(example, label=label) for example in data.examples if (label := found[example.label]) is not None
    )
    return replace(
        data,
        label_set=label_set,
        examples=examples,
        skipped={**data.skipped, **_outside(data, found)},
        notes=data.notes + _renamed(found, label_set),
    )


def _outside(data: DataSet, found: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    outside: dict[str, tuple[str, ...]] = {}
    for name in (name for name, place in found.items() if place is None):
        ids = tuple(example.id for example in data.examples if example.label == name)
        if ids:
            outside[f"label outside of the label set: {name}"] = ids
    return outside


def _renamed(found: Mapping[str, str | None], label_set: str) -> tuple[str, ...]:
    renamed = [f"{name} as {place}" for name, place in found.items() if place is not None and name != place]
    return (f"labels read as {label_set}'s: {', '.join(renamed)}",) if renamed else ()
