"""Differences of two rungs, paired over seeds and people: both are drawn again and again with replacement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmt_training.metrics import LOWEST_P, Floats, confusion_matrix
from cmt_training.statistics import CONFIDENCE, Interval

DRAWS = 2000


class Drawn:
    """The same seeds and people drawn for every rung. people: of each test item."""

    def __init__(self, people: Floats, labels: Floats, seeds: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        names, self.person = np.unique(people, return_inverse=True)
        self.labels = labels
        self.seeds = rng.multinomial(seeds, [1 / seeds] * seeds, DRAWS) / seeds  # [draws, seeds] shares
        self.people = rng.multinomial(len(names), [1 / len(names)] * len(names), DRAWS)  # [draws, people] how often

    def weighted_f1(self, probabilities: Sequence[Floats]) -> Floats:
        """Of a rung's probabilities [items, labels] of each seed, in each draw."""
        return self._mean([_weighted_f1(self._summed(self._confusions(each))) for each in probabilities])

    def cross_entropy(self, probabilities: Sequence[Floats]) -> Floats:
        found = []
        for each in probabilities:
            losses = -np.log(each[np.arange(len(self.labels)), self.labels].clip(LOWEST_P))
            sums = np.bincount(self.person, losses, self.people.shape[1])
            found.append(self.people @ sums / (self.people @ np.bincount(self.person)))
        return self._mean(found)

    def _mean(self, values: Sequence[Floats]) -> Floats:
        mean: Floats = (self.seeds * np.stack(values, axis=1)).sum(axis=1)
        return mean

    def _confusions(self, probabilities: Floats) -> Floats:
        """[people, labels, labels]."""
        people = range(self.people.shape[1])
        return np.stack(
            [confusion_matrix(probabilities[self.person == p], self.labels[self.person == p]) for p in people]
        )

    def _summed(self, confusions: Floats) -> Floats:
        summed: Floats = np.tensordot(self.people, confusions, 1)  # [draws, labels, labels]
        return summed


def difference(ours: Floats, theirs: Floats, values: Sequence[float]) -> Interval:
    """Of ours minus theirs in each draw; values: the difference of each seed, as measured."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ours - theirs, [tail, 100 - tail])
    return Interval(float(np.mean(values)), float(low), float(high), tuple(values))


def _weighted_f1(confusion: Floats) -> Floats:
    """[draws, labels, labels] -> [draws]."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support = confusion.sum(axis=2)
    f1 = 2 * hits / np.maximum(confusion.sum(axis=1) + support, 1)
    mean: Floats = (f1 * support).sum(axis=1) / support.sum(axis=1)
    return mean
