"""Golden requests: what a release proves itself with, at every pipeline, through both entrances of all subsets.

That a release serves is said only once they were answered by it; what was written or loaded proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client import Emotion, EmotionClient, EmotionError, Item, Overloaded, ServerUnavailable
from cmt_export.samples import generated_bytes
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality, ordered
from cmt_pipeline.preprocess import collate, open_preprocessors
from cmt_release.manifest import Manifest
from cmt_release.release import Release

TRIES = 20  # of one golden request while the server is overloaded
PAUSE_S = 0.2

Subset = tuple[Modality, ...]


@dataclass(frozen=True)
class Golden:
    """What a release is asked, and what it must answer.

    items, tensors: the requests of the two entrances, by subset; answers: PyTorch's probabilities, by subset, none
    where only who answers can be told; tolerance: of each of them; digest: the release's.
    """

    number: int
    items: Mapping[Subset, Item]
    tensors: Mapping[Subset, Mapping[str, Any]] = field(default_factory=dict)
    answers: Mapping[Subset, Mapping[str, float]] = field(default_factory=dict)
    tolerance: float = 0.0
    digest: str = ""
    modalities: Subset = MODALITIES

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """What can be asked of it."""
        return tuple(subset for subset in SUBSETS if set(subset) <= set(self.modalities))

    def passed(self) -> str:
        """What it means that nothing was wrong, for people."""
        if self.answers:
            count = len(self.items) + len(self.tensors)
            return f"{count} golden requests answered by release {self.number} as PyTorch does"
        return f"{len(self.items)} requests answered by release {self.number}, whose golden ones aren't here to ask"


def golden_of(manifest: Manifest, files: Mapping[Modality, bytes], preprocess: Path) -> Golden:
    """The golden requests of a release. files: what they are made of; preprocess: the folder of that stage."""
    ready = ready_tensors(files, preprocess)
    subsets = [subset for subset in SUBSETS if files.keys() >= set(subset)]
    return Golden(
        number=manifest.number,
        items={subset: item_of({m: files[m] for m in subset}) for subset in subsets},
        tensors={subset: {name: a for m in subset for name, a in ready[m].items()} for subset in subsets},
        answers={answer.modalities: answer.probabilities for answer in manifest.golden},
        tolerance=manifest.golden_tolerance,
        digest=manifest.digest,
        modalities=manifest.info.modalities,
    )


def golden_of_release(release: Release) -> Golden:
    """Of a release of the store. Raises ReleaseError."""
    return golden_of(release.manifest, release.golden_files(), release.stage_folder("preprocess"))


def generated_golden(number: int, modalities: Subset = MODALITIES) -> Golden:
    """Of a release whose files aren't at hand: whether it answers at all, and no other."""
    rng = np.random.default_rng(0)
    files = {m: generated_bytes(m, rng, 1.0) for m in MODALITIES}
    golden = Golden(number, {}, modalities=modalities)
    return replace(golden, items={subset: item_of({m: files[m] for m in subset}) for subset in golden.subsets})


def ready_tensors(files: Mapping[Modality, bytes], preprocess: Path) -> dict[Modality, dict[str, Any]]:
    """The files as the other entrance takes them."""
    prepare = open_preprocessors(preprocess)
    return {m: collate(m, [prepare[m](data)]) for m, data in files.items()}


def golden_faults(client: EmotionClient, golden: Golden) -> list[str]:
    """Where the answers aren't the release's; also which pipelines couldn't be asked.

    Raises ServerUnavailable where nobody answers.
    """
    faults = [
        f"{'+'.join(subset)}: it has no golden request" for subset in golden.subsets if subset not in golden.items
    ]
    for what, subset, ask in _questions(client, golden):
        try:
            emotion = _let_in(ask)
        except ServerUnavailable:
            raise
        except EmotionError as error:
            faults.append(f"{what}: {error}")
            continue
        if fault := _fault(emotion, golden, subset):
            faults.append(f"{what}: {fault}")
    return faults


def _let_in(ask: Callable[[], Emotion]) -> Emotion:
    """Again where too much waits there already: that says nothing about a release."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except Overloaded as error:
            time.sleep(error.retry_after_s or PAUSE_S)
    return ask()


def _questions(client: EmotionClient, golden: Golden) -> Iterator[tuple[str, Subset, Callable[[], Emotion]]]:
    for subset, item in golden.items.items():
        yield "+".join(subset), subset, lambda item=item: client.predict(**item)  # type: ignore[misc]
    for subset, tensors in golden.tensors.items():
        yield (
            f"{'+'.join(subset)} as tensors",
            subset,
            lambda tensors=tensors: client.predict_tensors(**tensors)[0],  # type: ignore[misc]
        )


def _fault(emotion: Emotion, golden: Golden, subset: Subset) -> str | None:
    if emotion.release != golden.number:
        return f"release {emotion.release} answered; expected release {golden.number}"
    if golden.digest and emotion.digest != golden.digest:
        return (
            f"another release {golden.number} answered: got digest {emotion.digest[:12]}; expected {golden.digest[:12]}"
        )
    if not golden.answers:
        return None
    expected = golden.answers.get(subset)
    if expected is None:
        return "the release says nothing of what PyTorch answers; export it again"
    if emotion.probabilities.keys() != expected.keys():
        return f"got the labels {', '.join(emotion.probabilities)}; expected {', '.join(expected)}"
    off = max(abs(emotion.probabilities[label] - p) for label, p in expected.items())
    return f"a probability is off by {off:.2g}" if off > golden.tolerance else None


def item_of(files: Mapping[Modality, bytes]) -> Item:
    """What a client takes: bytes, and text as a string."""
    item: Item = {}
    for modality in ordered(files):
        item[modality] = files[modality].decode(errors="replace") if modality == "text" else files[modality]
    return item
