"""What the ladder found on the family."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cmt_release.typed_json import parsed, typed
from cmt_training.binding.family import KINDS, Kind, ceiling
from cmt_training.binding.ladder import MODELS, RUNGS, made, parameters_of
from cmt_training.binding.run import Reached, Trained
from cmt_training.markdown import markdown_table
from cmt_training.statistics import Interval, interval_of

METHOD = (
    "Every rung reads the same tokens and has about the parameters of cross-attention; each net trains on new items in "
    "every step, of lengths that grow, at the learning rate that is best on the first seed's validation items; "
    "accuracies are of test items, intervals 95 %, Student's t over seeds. emap: the best trained rung's additive "
    "projection over modalities (Hessel & Lee 2020), beside that rung on the same items."
)


@dataclass(frozen=True)
class Found:
    """Of one kind at one length: each rung's accuracy, the best trained rung, and what is left of it without
    interactions."""

    kind: Kind
    length: int
    accuracies: Mapping[str, Interval]
    learning_rates: Mapping[str, float]
    winner: str
    winner_on_emap_items: Interval
    emap: Interval


@dataclass(frozen=True)
class Results:
    """ceilings: the accuracy of who knows what every token shows, by kind; parameters: of each net."""

    method: str
    ceilings: Mapping[str, float]
    parameters: Mapping[str, int]
    cells: tuple[Found, ...]
    conditions: Mapping[str, Any]

    @classmethod
    def of(cls, trained: Sequence[Trained], conditions: Mapping[str, Any]) -> Results:
        """Of the kinds in which every model is trained."""
        parameters = {model: parameters_of(made(model)) for model in MODELS}
        tasks = sorted({each.task for each in trained}, key=lambda task: (KINDS.index(task.kind), task.lengths))
        parts = {task: [each for each in trained if each.task == task] for task in tasks}
        found = tuple(
            _found(task.kind, number, part)
            for task, part in parts.items()
            if {each.model for each in part} == set(MODELS)
            for number in range(len(task.lengths))
        )
        return cls(METHOD, {kind: ceiling(kind) for kind in KINDS}, parameters, found, conditions)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """ValueError for what isn't one."""
        values = parsed(text)
        known = values.pop("conditions", {})
        stored = typed(_Stored, values, "binding")
        return cls(stored.method, stored.ceilings, stored.parameters, stored.cells, known)

    def markdown(self) -> str:
        """A table: a row a rung, a column a kind and length."""
        head = ["rung", *(f"{each.kind} {each.length}" for each in self.cells)]
        rows = [[rung, *(f"{each.accuracies[rung].mean:.2f}" for each in self.cells)] for rung in RUNGS]
        emap = ["*EMAP of the best*", *(f"{each.emap.mean:.2f}" for each in self.cells)]
        return markdown_table(head, [*rows, emap])


@dataclass(frozen=True)
class _Stored:
    """What of Results has a type throughout."""

    method: str
    ceilings: Mapping[str, float]
    parameters: Mapping[str, int]
    cells: tuple[Found, ...]


def _found(kind: Kind, number: int, trained: Sequence[Trained]) -> Found:
    """number: of the length among those of the task."""
    tested: dict[str, Reached] = {each.model: each.reached[number] for each in trained}
    accuracies = {rung: interval_of(values) for each in tested.values() for rung, values in each.accuracies.items()}
    winner = max((model for model in tested if model in RUNGS), key=lambda model: accuracies[model].mean)
    return Found(
        kind,
        trained[0].reached[number].length,
        {rung: accuracies[rung] for rung in RUNGS},
        {each.model: each.learning_rate for each in trained},
        winner,
        interval_of(tested[winner].own),
        interval_of(tested[winner].emap),
    )
