"""Judging a release by its answers and their times, against the release that runs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmt_client import Emotion, EmotionClient, EmotionError, InvalidInput, Item, Overloaded, ServiceError
from cmt_export.samples import EXTENSIONS, generated_bytes
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_rollout.golden import item_of
from cmt_rollout.options import RolloutOptions
from cmt_rollout.significance import median_at_least

SLOWER_BY_CHANCE = 0.01  # seven requests, one of each subset, can just show it

#: What says nothing about the release that said it.
REFUSALS = (InvalidInput, Overloaded)


@dataclass
class Comparison:
    """Answers of the running release and of the one on trial to the same requests, asked in turns.

    broken: whether the running release fails its own golden requests. Then it is no measure: how far the one on trial
    is from it, and how much slower, doesn't count. usual_ms: gets what items take the running one, by their identity.
    """

    broken: bool = False
    usual_ms: dict[int, list[float]] = field(default_factory=dict)
    pairs: list[tuple[Emotion, Emotion]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    asked: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def flips(self) -> float:
        """The share of requests whose label differs."""
        return sum(a.label != b.label for a, b in self.pairs) / max(1, len(self.pairs))

    @property
    def distance(self) -> float:
        """Mean total variation distance of the probabilities, from 0 to 1."""
        return float(np.mean([_distance(a, b) for a, b in self.pairs])) if self.pairs else 0.0

    @property
    def slowdown(self) -> float:
        """The median of how many times as long the one on trial took."""
        return statistics.median(self.ratios) if self.ratios else 1.0

    def ask(self, running: EmotionClient, trial: EmotionClient, item: Item) -> None:
        """One request to both. What the running release refuses, or fails, says nothing about the other."""
        first = None
        try:
            first, first_ms = timed(running, item)
        except REFUSALS:
            self.refused += 1
            return
        except ServiceError:
            if not self.broken:
                raise
        try:
            second, second_ms = timed(trial, item)
        except Overloaded:
            self.refused += 1
            return
        except EmotionError as error:
            self.asked += 1
            self.errors.append(str(error))
            return
        self.asked += 1
        if first is not None:
            self.pairs.append((first, second))
            self.ratios.append(second_ms / first_ms)
            self.usual_ms.setdefault(id(item), []).append(first_ms)

    def faults(self, options: RolloutOptions) -> list[str]:
        """Where it goes beyond what the options allow."""
        found = []
        if len(self.errors) > options.max_errors * self.asked:
            found.append(f"{len(self.errors)} of {self.asked} requests failed: {self.errors[0]}")
        if self.broken:
            return found
        if self.flips > options.max_flips:
            found.append(f"{self.flips:.0%} of the labels flip; {options.max_flips:.0%} are allowed")
        if self.distance > options.max_distance:
            found.append(f"probabilities are {self.distance:.3f} apart; {options.max_distance:g} is allowed")
        if slow := slower(self.ratios, options.max_slowdown):
            found.append(slow)
        return found

    def summary(self) -> str:
        """What was compared, for people."""
        if self.broken:
            return (
                f"{self.asked} requests answered; the running release fails its own golden requests, so how far the "
                "answers are from its own doesn't count"
            )
        return (
            f"{len(self.pairs)} requests to both: {self.flips:.0%} of the labels flip, probabilities "
            f"{self.distance:.3f} apart, {self.slowdown:.2f} times as long in the median"
        )


def slower(ratios: Sequence[float], allowed: float) -> str | None:
    """Why the requests take longer than allowed, beyond chance; None if they don't. ratios: new time over old."""
    least = median_at_least(ratios, SLOWER_BY_CHANCE)
    if least <= allowed:
        return None
    return (
        f"it takes {statistics.median(ratios):.2f} times as long, of {len(ratios)} requests in the median and "
        f"{least:.2f} at the least; {allowed:g} is allowed"
    )


def timed(client: EmotionClient, item: Item) -> tuple[Emotion, float]:
    """An answer and its latency in milliseconds."""
    start = time.perf_counter()
    emotion = client.predict(**item)
    return emotion, (time.perf_counter() - start) * 1e3


def live_like(options: RolloutOptions, modalities: tuple[Modality, ...] = MODALITIES, seed: int = 0) -> list[Item]:
    """Requests like those of users, every subset of the modalities in turn: from the folder of the options, else
    generated ones.

    ValueError when the folder lacks a modality.
    """
    files = _files(options.requests, modalities) if options.requests is not None else None
    subsets = [subset for subset in reversed(SUBSETS) if set(subset) <= set(modalities)]
    rng = np.random.default_rng(seed)
    items = []
    for index, subset in zip(range(options.samples), itertools.cycle(subsets), strict=False):
        if files is None:
            seconds = float(rng.uniform(0.5, 3.5))
            items.append(item_of({m: generated_bytes(m, rng, seconds) for m in subset}))
        else:
            items.append(item_of({m: files[m][index % len(files[m])].read_bytes() for m in subset}))
    return items


def _files(folder: Path, modalities: tuple[Modality, ...]) -> dict[Modality, list[Path]]:
    found = {m: sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS[m]) for m in modalities}
    if lacking := [m for m in modalities if not found[m]]:
        raise ValueError(f"{folder} has no {' and no '.join(lacking)} files; expected some of each modality")
    return found


def _distance(a: Emotion, b: Emotion) -> float:
    return 0.5 * sum(abs(p - b.probabilities.get(label, 0.0)) for label, p in a.probabilities.items())
