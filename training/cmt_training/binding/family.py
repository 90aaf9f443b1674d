"""A controlled family of token sequences: what a fusion can bind, and where simpler ones must do as well.

A sentence of words, a voice and a face, a token each at every moment. A token is when it is, in a code of its own
modality (one turn of it each, so that times have to be matched by learning), plus what it shows, plus noise. Half of
the words are positive, half negative; the voice stresses some; the face shows something at some. Two labels.

    binding       the voice stresses one word, the label is its valence; the face moves at a moment that says nothing
    coincidence   the voice stresses two words, of either valence one, and so does the face; they meet at one, whose
                  valence is the label: no two modalities tell it
    redundant     every modality shows the label, all with the same errors: one is as good as all
    unique        the voice alone shows it
    additive      each shows it with errors of its own: the sum of log-odds is all there is to know
    xor           the label is whether voice and sentence show the same

In the first two, and in `xor`, each modality alone is at chance, whatever the length: as many words say yes as no, and
turning every word round turns the label round without changing voice or face.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_pipeline.modality import MODALITIES

Kind = Literal["binding", "coincidence", "redundant", "unique", "additive", "xor"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BOUND: tuple[Kind, ...] = ("binding", "coincidence")
Marks = NDArray[np.int64]  # [items, 3, length]: what each token shows, from -1 to 1
IMAGE, AUDIO, TEXT = range(len(MODALITIES))

WIDTH = 32
NOISE = 0.1  # standard deviation of each channel
LONGEST_WAVE = 200.0  # of the code of time, in moments
RIGHT = {"redundant": 0.85, "unique": 0.85, "additive": 0.75}  # chance that a cue shows the label
WORLD_SEED = 20_261_126  # of the codes and directions, which are the same for all


@dataclass(frozen=True)
class Drawn:
    """What tokens show, before they are tokens: marks [items, 3, length] from -1 to 1, labels [items]."""

    marks: Tensor
    labels: Tensor

    @property
    def length(self) -> int:
        return self.marks.shape[-1]


@dataclass(frozen=True)
class Items:
    """The fusion's input contract. features: of image, audio and text, [items, length, WIDTH] each; masks [items,
    length]; labels [items]."""

    features: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: Tensor | slice) -> Items:
        return Items(tuple(f[rows] for f in self.features), tuple(m[rows] for m in self.masks), self.labels[rows])


def drawn(kind: Kind, length: int, count: int, seed: int, part: int = 0) -> Drawn:
    """length: even, 4 or more; part: others of the same seed."""
    if length < 4 or length % 2:
        raise ValueError(f"length: got {length}; expected an even number, 4 or more")
    rng = np.random.default_rng([KINDS.index(kind), length, seed, part])
    if kind in BOUND:
        marks = _sentences(kind, length, count, rng)
        stressed = marks[:, TEXT] * marks[:, AUDIO] * (marks[:, IMAGE] if kind == "coincidence" else 1)
        labels = (stressed.sum(axis=1) > 0).astype(np.int64)
    else:
        labels = rng.integers(0, 2, count)
        where = rng.integers(0, length, (count, len(MODALITIES)))
        marks = _cues(kind, 2 * labels - 1, rng)[..., None] * (np.arange(length) == where[..., None])
    return Drawn(torch.from_numpy(marks).to(torch.int8), torch.from_numpy(labels))


def shown(marks: Tensor, generator: torch.Generator) -> Tensor:
    """Marks [..., 3, length] -> tokens [..., 3, length, WIDTH], with new noise."""
    codes, directions = (torch.from_numpy(part).float() for part in _world(marks.shape[-1]))
    noise = torch.randn((*marks.shape, WIDTH), generator=generator)
    return codes + marks[..., None] * directions[:, None] + NOISE * noise


def items(of: Drawn, generator: torch.Generator) -> Items:
    """With the tokens of each modality. generator: of their noise."""
    tokens = shown(of.marks, generator)
    masks = torch.ones(of.marks.shape[0], of.length, dtype=torch.int64)
    return Items(tokens.unbind(dim=1), (masks,) * len(MODALITIES), of.labels)


def ceiling(kind: Kind) -> float:
    """The accuracy of who knows the marks."""
    right = RIGHT.get(kind, 1.0)
    return right**3 + 3 * right**2 * (1 - right) if kind == "additive" else right


def _sentences(kind: Kind, length: int, count: int, rng: np.random.Generator) -> Marks:
    """As many positive words as negative ones in random order, and what voice and face do at which."""
    halves = np.repeat([1, -1], length // 2)
    words = rng.permuted(np.broadcast_to(halves, (count, length)), axis=1)
    meant = rng.integers(0, length, count)
    rows = np.arange(count)
    marks = np.zeros((count, len(MODALITIES), length), np.int64)
    marks[:, TEXT] = words
    marks[rows, AUDIO, meant] = 1
    if kind == "binding":
        marks[rows, IMAGE, rng.integers(0, length, count)] = 1
        return marks
    marks[rows, IMAGE, meant] = 1
    opposite = words == -words[rows, meant][:, None]
    ranks = np.where(opposite, rng.random(words.shape), -1).argsort(axis=1)
    marks[rows, AUDIO, ranks[:, -1]] = 1
    marks[rows, IMAGE, ranks[:, -2]] = 1
    return marks


def _cues(kind: Kind, signs: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """What each modality shows [items, 3] of a label of -1 or 1."""
    random = rng.choice([-1, 1], (len(signs), len(MODALITIES)))
    if kind == "xor":
        random[:, TEXT] = random[:, AUDIO] * signs
        return random
    errors = np.where(rng.random(random.shape) < RIGHT[kind], 1, -1)
    if kind == "additive":
        each: NDArray[np.int64] = signs[:, None] * errors
        return each
    shown = np.broadcast_to((signs * errors[:, 0])[:, None], random.shape)
    shows = kind == "redundant" or np.arange(len(MODALITIES)) == AUDIO
    cues: NDArray[np.int64] = np.where(shows, shown, random)
    return cues


@functools.cache
def _world(length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The code of each moment in each modality [3, length, WIDTH], and the direction of what it shows [3, WIDTH]."""
    rng = np.random.default_rng(WORLD_SEED)
    turns = np.stack([np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in MODALITIES])
    waves = np.geomspace(4.0, LONGEST_WAVE, WIDTH // 2)  # in moments
    angles = 2 * np.pi * np.arange(length)[:, None] / waves
    code = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [length, WIDTH]
    directions = rng.normal(size=(len(MODALITIES), WIDTH))
    directions *= np.sqrt(WIDTH) / np.linalg.norm(directions, axis=1, keepdims=True)
    return code @ turns, directions
