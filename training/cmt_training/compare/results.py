"""What ladders found: generated.json, what `cmt compare` writes, and the tables of docs/training.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cmt_pipeline.modality import MODALITIES
from cmt_release.typed_json import parsed, typed
from cmt_training.binding.ladder import MODELS, RUNGS
from cmt_training.compare.intervals import Drawn, difference
from cmt_training.compare.run import Answered, Place, Training, answered, emap
from cmt_training.compare.tokens import Tokens
from cmt_training.markdown import markdown_table
from cmt_training.metrics import Floats, confusion_matrix, f1_per_label, metrics_of
from cmt_training.statistics import Interval, interval_of, percent

OURS = "cross-attention"
#: What the paper's abstract claims over strong multimodal baselines (arXiv 2601.14259).
CLAIMED_PERCENT = {"weighted_f1": 3.0, "cross_entropy": -12.9}
COVERED = (0.5, 0.8)  # shares of the items that are answered, the surest first
METHOD = (
    "Encoders are frozen; every rung reads the same tokens, has about as many parameters, and the same steps and "
    "learning rates to try. Its best step, temperature and biases of labels are those of validation items, figures of "
    "test items. Intervals of a rung are 95 %, Student's t over seeds; of a difference, "
    "95 % of draws of seeds and people with replacement, paired. emap: the additive projection over modalities of the "
    "best rung (Hessel & Lee 2020), beside that rung on the same items."
)


@dataclass(frozen=True)
class Rung:
    """f1: by label; kinds: accuracy by kind of interplay; selective: accuracy over a share of the items, the surest;
    without: weighted F1 where a modality is left out of every item. Means over seeds."""

    learning_rate: float
    parameters: int
    seconds: float
    weighted_f1: Interval
    macro_f1: Interval
    accuracy: Interval
    cross_entropy: Interval
    ece: Interval
    f1: Mapping[str, float]
    kinds: Mapping[str, float]
    selective: Mapping[str, float]
    without: Mapping[str, float]


@dataclass(frozen=True)
class Margin:
    """Cross-attention minus another rung; percent: of the other's mean."""

    measure: str
    other: str
    difference: Interval
    percent: float
    claimed_percent: float
    met: bool

    def told(self) -> str:
        """As docs/training.md says it."""
        mean, low, high = (
            f"{value:+.3f}" for value in (self.difference.mean, self.difference.low, self.difference.high)
        )
        return f"{self.percent:+.1f} % against {self.other} ({mean} [{low}, {high}])"


@dataclass(frozen=True)
class Ladder:
    """On one data set. items: of each split; kinds: of test items; margins: over the best other rung, over_late: over
    log-linear late fusion; best: of the fusions that are one net, that of the highest weighted F1, own and emap: its
    weighted F1 on some items, and without interactions."""

    items: Mapping[str, int]
    kinds: Mapping[str, int]
    rungs: Mapping[str, Rung]
    margins: tuple[Margin, ...]
    over_late: tuple[Margin, ...]
    best: str
    own: Interval
    emap: Interval


@dataclass(frozen=True)
class Results:
    """corpora: a ladder for each data set, by its name."""

    corpora: Mapping[str, Ladder]
    conditions: Mapping[str, Any]
    method: str = METHOD

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """ValueError for what isn't one."""
        values = parsed(text)
        known = values.pop("conditions", {})
        stored = typed(_Stored, values, "generated")
        return cls(stored.corpora, known, stored.method)

    def markdown(self) -> str:
        """A table: a row a rung, columns of each corpus."""
        names = list(self.corpora)
        titles = [f"{name}: {title}" for name in names for title in ("weighted F1", "cross-entropy", "ECE")]
        rows = []
        for rung in RUNGS:
            found = [self.corpora[name].rungs.get(rung) for name in names]
            if any(found):
                rows.append([rung, *(cell for each in found for cell in (cells_of(each) if each else ("",) * 3))])
        return markdown_table(["rung", *titles], rows)

    def kinds_markdown(self, corpus: str) -> str:
        """Another: accuracy by kind of interplay, of the surest half, and F1 without a modality."""
        ladder = self.corpora[corpus]
        kinds, covered = list(ladder.kinds), f"{COVERED[0]:g}"
        head = [*kinds, "surest half", *(f"F1 without {m}" for m in MODALITIES)]
        rows = []
        for name, rung in ladder.rungs.items():
            cells = [f"{rung.kinds[kind]:.2f}" for kind in kinds]
            cells += [f"{rung.selective[covered]:.2f}"]
            cells += [f"{rung.without[m]:.2f}" if m in rung.without else "" for m in MODALITIES]
            rows.append([name, *cells])
        return markdown_table(["rung", *head], rows)


@dataclass(frozen=True)
class _Stored:
    """What of Results has a type throughout."""

    method: str
    corpora: Mapping[str, Ladder]


def ladder_of(tokens: Tokens, trainings: Mapping[str, Sequence[Training]], place: Place) -> Ladder:
    """trainings: of models of the ladder, late fusion and cross-attention among them, one a seed."""
    rows = tokens.of("test")
    found: dict[str, list[Answered]] = {}
    for each in trainings.values():
        for training in each:
            for rung, answer in answered(training, tokens).items():
                found.setdefault(rung, []).append(answer)
    rungs: dict[str, Rung] = {rung: _rung(found[rung], tokens) for rung in RUNGS if rung in found}
    best = max(
        (rung for rung in rungs if rung in MODELS and rung not in MODALITIES),
        key=lambda rung: rungs[rung].weighted_f1.mean,
    )
    projected = [emap(training, tokens, place) for training in trainings[best]]
    margins = _Margins(tokens, rungs, {rung: [a.probabilities[""] for a in found[rung]] for rung in rungs})
    return Ladder(
        {split: len(tokens.of(split)) for split in ("train", "validation", "test")},
        {kind: int((tokens.kinds[rows] == kind).sum()) for kind in sorted(set(tokens.kinds[rows].tolist()))},
        rungs,
        tuple(margins.over(margins.strongest(measure), measure) for measure in CLAIMED_PERCENT),
        tuple(margins.over("log-linear", measure) for measure in CLAIMED_PERCENT),
        best,
        interval_of([metrics_of(own, labels)["weighted_f1"] for own, _, labels in projected]),
        interval_of([metrics_of(parts, labels)["weighted_f1"] for _, parts, labels in projected]),
    )


def _rung(answers: Sequence[Answered], tokens: Tokens) -> Rung:
    rows = tokens.of("test")
    labels, kinds = tokens.labels[rows], tokens.kinds[rows]
    whole = [answer.probabilities[""] for answer in answers]
    metrics = [metrics_of(each, labels) for each in whole]
    f1 = np.mean([f1_per_label(confusion_matrix(each, labels)) for each in whole], axis=0)
    right = [each.argmax(axis=1) == labels for each in whole]
    without = {m: [answer.probabilities[m] for answer in answers] for m in MODALITIES if m in answers[0].probabilities}
    return Rung(
        answers[0].learning_rate,
        answers[0].parameters,
        float(np.mean([answer.seconds for answer in answers])),
        **{name: interval_of([found[name] for found in metrics]) for name in metrics[0] if name != "count"},
        f1=dict(zip(tokens.names, f1.tolist(), strict=True)),
        kinds={str(kind): float(np.mean([each[kinds == kind].mean() for each in right])) for kind in np.unique(kinds)},
        selective={
            f"{share:g}": float(np.mean([_selective(each, labels, share) for each in whole])) for share in COVERED
        },
        without={
            m: float(np.mean([metrics_of(each, labels)["weighted_f1"] for each in found]))
            for m, found in without.items()
        },
    )


def _selective(probabilities: Floats, labels: Floats, share: float) -> float:
    """Accuracy over a share of the items, of which the model is surest."""
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")[: round(share * len(labels))]
    return float((probabilities[surest].argmax(axis=1) == labels[surest]).mean())


class _Margins:
    def __init__(self, tokens: Tokens, rungs: Mapping[str, Rung], probabilities: Mapping[str, list[Floats]]) -> None:
        rows = tokens.of("test")
        self.rungs, self.probabilities = rungs, probabilities
        self.drawn = Drawn(tokens.people[rows], tokens.labels[rows], len(probabilities[OURS]))

    def strongest(self, measure: str) -> str:
        """Of the other rungs."""
        sign = np.sign(CLAIMED_PERCENT[measure])
        others = [rung for rung in self.rungs if rung != OURS]
        return max(others, key=lambda rung: sign * self._of(rung, measure).mean)

    def over(self, other: str, measure: str) -> Margin:
        ours, theirs = self._of(OURS, measure), self._of(other, measure)
        draws, baseline = (getattr(self.drawn, measure)(self.probabilities[rung]) for rung in (OURS, other))
        found = difference(draws, baseline, [a - b for a, b in zip(ours.values, theirs.values, strict=True)])
        off, claimed = percent(ours, theirs), CLAIMED_PERCENT[measure]
        return Margin(measure, other, found, off, claimed, bool(np.sign(claimed) * (off - claimed) >= 0))

    def _of(self, rung: str, measure: str) -> Interval:
        found: Interval = getattr(self.rungs[rung], measure)
        return found


def cells_of(rung: Rung) -> tuple[str, str, str]:
    """Weighted F1, cross-entropy and ECE, for a table."""
    return rung.weighted_f1.short(), rung.cross_entropy.short(), f"{rung.ece.mean:.3f}"
