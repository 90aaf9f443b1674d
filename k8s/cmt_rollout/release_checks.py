"""Judging a release by its answers: against the truth it was exported with, and against the release that runs."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client import Emotion, EmotionClient, EmotionError, InvalidInput, Item
from cmt_export.samples import EXTENSIONS, generated_bytes
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality, ordered
from cmt_pipeline.preprocess import collate, open_preprocessors
from cmt_release.release import Release
from cmt_rollout.options import RolloutOptions


def golden_faults(client: EmotionClient, release: Release) -> list[str]:
    """Where the answers to the release's own golden requests aren't PyTorch's, through both entrances of each subset.

    Raises ServiceError for a request that fails, NaN in an answer included.
    """
    files = release.golden_files()
    prepare = open_preprocessors(release.stage_folder("preprocess"))
    ready = {m: collate(m, [prepare[m](data)]) for m, data in files.items()}
    faults = []
    for golden in release.manifest.golden:
        tensors: dict[str, Any] = {name: array for m in golden.modalities for name, array in ready[m].items()}
        answers = {
            "": client.predict(**item_of({m: files[m] for m in golden.modalities})),
            " as tensors": client.predict_tensors(**tensors)[0],
        }
        for entrance, emotion in answers.items():
            what = f"{'+'.join(golden.modalities)}{entrance}"
            if emotion.release != release.number:
                faults.append(f"{what}: release {emotion.release} answered")
            elif emotion.probabilities.keys() != golden.probabilities.keys():
                faults.append(f"{what}: got the labels {', '.join(emotion.probabilities)}")
            else:
                off = max(abs(emotion.probabilities[k] - p) for k, p in golden.probabilities.items())
                if off > release.manifest.golden_tolerance:
                    faults.append(f"{what}: a probability is off by {off:.2g}")
    return faults


@dataclass
class Comparison:
    """Answers of the running release and of the one on trial to the same requests, asked in turns."""

    pairs: list[tuple[Emotion, Emotion]] = field(default_factory=list)
    running_ms: list[float] = field(default_factory=list)
    trial_ms: list[float] = field(default_factory=list)
    asked: int = 0
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
        """Median latency of the one on trial over that of the running one."""
        if not self.running_ms or not self.trial_ms:
            return 1.0
        return statistics.median(self.trial_ms) / statistics.median(self.running_ms)

    def ask(self, running: EmotionClient, trial: EmotionClient, item: Item) -> None:
        """One request to both. What the running release refuses as input says nothing about the other."""
        self.asked += 1
        try:
            first, first_ms = timed(running, item)
        except InvalidInput:
            return
        try:
            second, second_ms = timed(trial, item)
        except EmotionError as error:
            self.errors.append(str(error))
            return
        self.pairs.append((first, second))
        self.running_ms.append(first_ms)
        self.trial_ms.append(second_ms)

    def faults(self, options: RolloutOptions) -> list[str]:
        """Where it goes beyond what the options allow."""
        found = []
        if len(self.errors) > options.max_errors * self.asked:
            found.append(f"{len(self.errors)} of {self.asked} requests failed: {self.errors[0]}")
        if self.flips > options.max_flips:
            found.append(f"{self.flips:.0%} of the labels flip; {options.max_flips:.0%} are allowed")
        if self.distance > options.max_distance:
            found.append(f"probabilities are {self.distance:.3f} apart; {options.max_distance:g} is allowed")
        if self.slowdown > options.max_slowdown:
            found.append(f"it takes {self.slowdown:.2f} times as long; {options.max_slowdown:g} is allowed")
        return found

    def summary(self) -> str:
        return (
            f"{len(self.pairs)} requests to both: {self.flips:.0%} of the labels flip, probabilities "
            f"{self.distance:.3f} apart, {self.slowdown:.2f} times the median latency"
        )


def timed(client: EmotionClient, item: Item) -> tuple[Emotion, float]:
    """An answer and its latency in milliseconds."""
    start = time.perf_counter()
    emotion = client.predict(**item)
    return emotion, (time.perf_counter() - start) * 1e3


def live_like(options: RolloutOptions, seed: int = 0) -> list[Item]:
    """Requests like those of users, every subset in turn: from the folder of the options, else generated ones.

    ValueError when the folder lacks a modality.
    """
    files = _files(options.requests) if options.requests is not None else None
    rng = np.random.default_rng(seed)
    items = []
    for index, subset in zip(range(options.samples), itertools.cycle(reversed(SUBSETS)), strict=False):
        if files is None:
            seconds = float(rng.uniform(0.5, 3.5))
            items.append(item_of({m: generated_bytes(m, rng, seconds) for m in subset}))
        else:
            items.append(item_of({m: files[m][index % len(files[m])].read_bytes() for m in subset}))
    return items


def item_of(files: dict[Modality, bytes]) -> Item:
    """What a client takes: bytes, and text as a string."""
    item: Item = {}
    for modality in ordered(files):
        item[modality] = files[modality].decode(errors="replace") if modality == "text" else files[modality]
    return item


def _files(folder: Path) -> dict[Modality, list[Path]]:
    found = {m: sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS[m]) for m in MODALITIES}
    if lacking := [m for m in MODALITIES if not found[m]]:
        raise ValueError(f"{folder} has no {' and no '.join(lacking)} files; expected some of each modality")
    return found


def _distance(a: Emotion, b: Emotion) -> float:
    return 0.5 * sum(abs(p - b.probabilities.get(label, 0.0)) for label, p in a.probabilities.items())
