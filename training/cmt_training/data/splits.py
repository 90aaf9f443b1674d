"""Splits that keep people apart: made where a data set has none, and checked where it has its own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cmt_training.examples import SPLITS, DataError, Example, Media, Split

SEED = 0
SHARES: Mapping[Split, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}
OF_TRAINING: Mapping[Split, float] = {"train": 0.85, "validation": 0.15}
#: Names of splits that people use.
NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NAMED = 5  # of many, so many are named


def split_by_group(
    groups: Sequence[str], labels: Sequence[str], shares: Mapping[Split, float] = SHARES, seed: int = SEED
) -> list[Split]:
    """The split of each example, all of a group's in the same; labels in every split in about their shares.

    Groups of many examples are placed first, each where its labels are most lacking (as scikit-learn's
    StratifiedGroupKFold does), ties in seeded order. ValueError for fewer groups than splits.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        found[group][label] += 1
    if len(found) < len(shares):
        raise ValueError(f"got {len(found)} for {len(shares)} splits; expected one or more for each")
    names = sorted(found)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    order.sort(key=lambda name: -found[name].total())
    totals = Counter(labels)
    wanted = {split: {label: share * totals[label] for label in totals} for split, share in shares.items()}
    have: dict[Split, Counter[str]] = {split: Counter() for split in shares}
    chosen: dict[str, Split] = {}
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        empty = [split for split in shares if not have[split]]
        candidates = empty if len(empty) == left else list(shares)
        chosen[name] = max(candidates, key=lambda split: _lacking(found[name], wanted[split], have[split]))
        have[chosen[name]].update(found[name])
    return [chosen[group] for group in groups]


def _lacking(group: Mapping[str, int], wanted: Mapping[str, float], have: Mapping[str, int]) -> float:
    """How much of a group's labels a split wants, relative to what it wants in all, with half of them in it."""
    return sum(count * (1 - (have.get(label, 0) + count / 2) / wanted[label]) for label, count in group.items())


def with_splits(
    examples: Sequence[Example], of: str = "person", shares: Mapping[Split, float] = SHARES
) -> tuple[tuple[Example, ...], str]:
    """Examples, split here by their speakers, and a note that says so; one without is grouped with its files' others.

    of: what a group is called. DataError for too few of them.
    """
    groups = [example.speaker or _own_group(example, position) for position, example in enumerate(examples)]
    try:
        splits = split_by_group(groups, [example.label for example in examples], shares)
    except ValueError as error:
        raise DataError(f"a {of} is to be in one split alone: {error}. Add data, or splits of your own") from None
    known = any(example.speaker for example in examples)
    people: dict[Split, set[str]] = {split: set() for split in shares}
    for split, group in zip(splits, groups, strict=True):
        people[split].add(group)
    counts = ", ".join(f"{split} {len(found)}" for split, found in people.items())
    note = f"split here by {of if known else 'label'} (seed {SEED}): {counts}"
    if not known:
        note += "; who is who isn't known, so the same person may be in several splits"
    return tuple(replace(example, split=split) for example, split in zip(examples, splits, strict=True)), note


def completed(examples: Sequence[Example], of: str = "person") -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Examples with splits of their own; a part of the training split is made validation where that is absent."""
    there = {example.split for example in examples}
    if "train" not in there or "validation" in there:
        return tuple(examples), ()
    training = [example for example in examples if example.split == "train"]
    parted, note = with_splits(training, of, OF_TRAINING)
    others = tuple(example for example in examples if example.split != "train")
    return parted + others, (f"no validation split: {note}",)


def check_apart(examples: Iterable[Example], where: str, what: str = "group") -> None:
    """DataError where a speaker, or a file, is in two splits."""
    examples = tuple(examples)
    _refuse_shared(examples, lambda example: [example.speaker] if example.speaker else [], f"{where}: the {what}")
    _refuse_shared(examples, lambda example: [str(m.path) for m in _files(example)], f"{where}: the file")


def shared_between_splits(
    examples: Iterable[Example], keys: Callable[[Example], Sequence[str]]
) -> dict[str, tuple[Split, ...]]:
    """Key -> its splits, of those that are in several."""
    found: dict[str, set[Split]] = defaultdict(set)
    for example in examples:
        for key in keys(example):
            found[key].add(example.split)
    return {
        key: tuple(split for split in SPLITS if split in splits) for key, splits in found.items() if len(splits) > 1
    }


def _refuse_shared(examples: Iterable[Example], keys: Callable[[Example], Sequence[str]], what: str) -> None:
    shared = shared_between_splits(examples, keys)
    if shared:
        named = [f"{key} ({', '.join(splits)})" for key, splits in sorted(shared.items())]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        raise DataError(
            f"{what} is in several splits: {'; '.join(named[:NAMED])}{more}; expected each in one: "
            "a model would know the very people it is measured on. Correct the splits, or leave the column out"
        )


def _own_group(example: Example, position: int) -> str:
    files = _files(example)
    return f"file {files[0].path}" if files else f"row {position}"


def _files(example: Example) -> list[Media]:
    return [media for media in (example.image, example.audio) if media is not None and media.offset is None]
