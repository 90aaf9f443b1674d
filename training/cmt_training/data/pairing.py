"""Three single-modality data sets -> examples of several modalities that share a label: made, not recorded.

An image, a sound and a text are put together by their label alone, within a split and never across. They say the same,
but nobody was seen and heard at once: what one modality means for another can't be learnt from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cmt_pipeline.labels import LABEL_SETS, SEPARATOR, labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.synonyms import canonical
from cmt_training.data.names import relabelled
from cmt_training.data.splits import NAMED, shared_between_splits
from cmt_training.examples import SPLITS, DataError, DataSet, Example, Split

NAME = "paired"
SEED = 0

Parts = Mapping[Modality, DataSet]


def paired(parts: Parts, label_set: str | None = None, seed: int = SEED) -> DataSet:
    """Examples of one modality from each data set. Every example of the largest occurs once, others again and again.

    label_set: by default of the labels that all of them have; a label that one lacks is left out, as the absence of
    its modality would tell it. The same for the same data and seed. Raises DataError.
    """
    if len(parts) < 2:
        raise DataError(f"got data of {', '.join(parts) or 'nothing'} to pair; expected two or three modalities")
    chosen = label_set or _common_labels(parts)
    parts = {m: _readable(relabelled(data, chosen), m) for m, data in parts.items()}
    shared = _refuse_shared_people(parts)
    skipped = {f"{m} of {data.name}: {why}": found for m, data in parts.items() for why, found in data.skipped.items()}
    examples: list[Example] = []
    for split in SPLITS:
        for label in labels_of(chosen):
            made = list(_triples(parts, split, label, labels_of(chosen).index(label), seed))
            lacking = {m: [e for e in data.of(split) if e.label == label] for m, data in parts.items()}
            if not made and any(lacking.values()):
                without = ", ".join(m for m, found in lacking.items() if not found)
                skipped[f"{label} in {split}: no {without}"] = tuple(e.id for found in lacking.values() for e in found)
            examples += made
    if not examples:
        raise DataError(f"nothing can be paired: no split has a label in each of {', '.join(parts)}")
    name = "-".join([NAME, *(data.name for data in parts.values())])
    return DataSet(name, chosen, tuple(examples), skipped, (_note(parts, examples, seed), *shared, *_notes(parts)))


def _triples(parts: Parts, split: Split, label: str, position: int, seed: int) -> Iterator[Example]:
    found = {m: [e for e in data.of(split) if e.label == label] for m, data in parts.items()}
    if not all(found.values()):
        return
    count = max(map(len, found.values()))
    order = {
        m: _order(len(of), count, np.random.default_rng((seed, SPLITS.index(split), position, MODALITIES.index(m))))
        for m, of in found.items()
    }
    for number in range(count):
        chosen = {m: of[order[m][number]] for m, of in found.items()}
        yield Example(
            id=f"{NAME}/{split}/{label}/{number}",
            split=split,
            label=label,
            image=chosen["image"].image if "image" in chosen else None,
            audio=chosen["audio"].audio if "audio" in chosen else None,
            text=chosen["text"].text if "text" in chosen else None,
            cues={m: e.cues[m] for m, e in chosen.items() if m in e.cues},
            tags={m: e.id for m, e in chosen.items()},
        )


def _order(size: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` positions below `size`: each as often as any other, give or take one, in random order."""
    turns = -(-count // size)
    return [int(i) for _ in range(turns) for i in rng.permutation(size)][:count]


def _readable(data: DataSet, modality: Modality) -> DataSet:
    """Without examples that lack the modality."""
    lacking = tuple(e.id for e in data.examples if getattr(e, modality) is None)
    if len(lacking) == len(data.examples):
        raise DataError(f"{data.name} has no {modality}; expected a data set that has some: name another with --pair")
    examples = tuple(e for e in data.examples if getattr(e, modality) is not None)
    return replace(
        data, examples=examples, skipped={**data.skipped, **({f"no {modality}": lacking} if lacking else {})}
    )


def _common_labels(parts: Parts) -> str:
    """The labels that all training splits have: a registered set of just these, else in the first's order."""
    names = [[n for n in labels_of(d.label_set) if any(e.label == n for e in d.of("train"))] for d in parts.values()]
    common = set.intersection(*({canonical(name) for name in own} for own in names))
    if len(common) < 2:
        told = "; ".join(f"{d.name}: {', '.join(own)}" for d, own in zip(parts.values(), names, strict=True))
        raise DataError(f"got labels of which {len(common)} are in all ({told}); expected two or more to pair by")
    for name in LABEL_SETS:
        if {canonical(label) for label in labels_of(name)} == common:
            return name
    chosen: dict[str, str] = {}
    for label in names[0]:
        if canonical(label) in common:
            chosen.setdefault(canonical(label), label)
    return SEPARATOR.join(chosen.values())


def _refuse_shared_people(parts: Parts) -> tuple[str, ...]:
    """DataError where one part trains on whom another measures; notes on parts whose own splits share people."""
    shared_within = {data.name for data in parts.values() if shared_between_splits(data.examples, _person(data))}
    apart = [data for data in parts.values() if data.name not in shared_within]
    everyone = [replace(e, speaker=key[0]) for d in apart for e in d.examples if (key := _person(d)(e))]
    shared = shared_between_splits(everyone, lambda e: [e.speaker])
    if shared:
        named = "; ".join(f"{name} ({', '.join(splits)})" for name, splits in sorted(shared.items())[:NAMED])
        raise DataError(
            f"the data sets to pair have people in different splits: {named}; expected each in one split of all of "
            "them. Give them the same splits, or, if they are others, other names"
        )
    return tuple(f"the splits of {name} share people, as it was published" for name in sorted(shared_within))


def _person(data: DataSet) -> Callable[[Example], list[str]]:
    """Names of people mean the same in tables of one's own, and nothing in another published data set."""
    prefix = "" if "." in data.name else f"{data.name} "
    return lambda example: [f"{prefix}{example.speaker}"] if example.speaker else []


def _note(parts: Parts, examples: Sequence[Example], seed: int) -> str:
    sources = ", ".join(f"{m} of {data.name}" for m, data in parts.items())
    counts = []
    for split in SPLITS:
        whole = sum(e.split == split for e in examples)
        own = ", ".join(f"{m} {len({e.tags[m] for e in examples if e.split == split})}" for m in parts)
        counts.append(f"{split} {whole} ({own})")
    return f"{NAME} by label (seed {seed}), nobody recorded at once: {sources}; different ones: {'; '.join(counts)}"


def _notes(parts: Parts) -> Iterator[str]:
    for data in parts.values():
        yield from (f"{data.name}: {note}" for note in data.notes)
