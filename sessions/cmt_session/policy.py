"""Policies: what an application does about a person's state, as declared data.

A policy names states of its own, each by labels (whatever release answers: `joy` is `happiness`), and rules in order of
precedence. These classes are the format of the file too: `cmt_session.policy_file` reads it into them. All times are
seconds of media.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from cmt_pipeline.synonyms import canonical
from cmt_session.context import Context, Exemption, Ruling, ruling
from cmt_session.errors import InvalidPolicy
from cmt_session.fields import is_number, shown
from cmt_session.options import DEFAULT_TRACKER_OPTIONS, FORBID_UNKNOWN, TrackerOptions

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
#: States that every policy knows: no evidence that counts, and evidence that doesn't agree on a label for long enough.
NO_EVIDENCE, UNSETTLED = "no_evidence", "unsettled"
#: Of a steady label that none of the policy's states names.
OTHER = "other"
RESERVED = (NO_EVIDENCE, UNSETTLED, OTHER)

MAX_RULES = 32
MAX_STATES = 32
MAX_FIRINGS = 1_000
MAX_ESCALATE_AFTER = 8
MAX_TEXT = 500  # characters
DAY_S = 86_400


@dataclass(frozen=True)
class Share:
    """The state held for at least this share of the last over_s seconds; never in a session's first over_s."""

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    at_least: float
    over_s: float

    def __post_init__(self) -> None:
        _number("at_least", self.at_least, 0.01, 1)
        _number("over_s", self.over_s, 1, 3_600)


@dataclass(frozen=True)
class When:
    """What has to hold at once.

    state: one of these; for_s, until_s: it has held for at least and at most that long; certainty: probability of the
    state's labels together, at least; trend: of that probability; valence_below, valence_above: smoothed valence, which
    not every release reads; share: of recent time.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    state: tuple[str, ...]
    for_s: float = 0.0
    until_s: float | None = None
    certainty: float = 0.0
    trend: Literal["any", "rising", "falling", "steady"] = "any"
    valence_below: float | None = None
    valence_above: float | None = None
    share: Share | None = None

    def __post_init__(self) -> None:
        if not self.state:
            raise InvalidPolicy("state: got none; expected one or more")
        _number("for_s", self.for_s, 0, DAY_S)
        _number("certainty", self.certainty, 0, 1)
        if self.until_s is not None:
            _number("until_s", self.until_s, self.for_s, DAY_S)
        for name in ("valence_below", "valence_above"):
            if (value := getattr(self, name)) is not None:
                _number(name, value, -1, 1)
        read = self.certainty or self.trend != "any" or {self.valence_below, self.valence_above} != {None}
        if read and set(self.state) & set(RESERVED):
            raise InvalidPolicy(
                f"state: got {shown(list(self.state))} with a certainty, trend or valence; "
                "expected that of the policy's own states alone"
            )


@dataclass(frozen=True)
class Escalation:
    """In place of a rule's action, once it has fired `after` times within within_s and would again."""

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    after: int
    within_s: float
    action: str
    reason: str
    hand_off: bool = False

    def __post_init__(self) -> None:
        _number("after", self.after, 1, MAX_ESCALATE_AFTER)
        _number("within_s", self.within_s, 1, DAY_S)
        _name("action", self.action)
        _text("reason", self.reason)


@dataclass(frozen=True)
class Rule:
    """An action and when it is due.

    reason: why, in a sentence that may be shown to the person; cool_down_s: least time between two firings;
    most_firings: in a session; hand_off: whether a person takes over.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    name: str
    when: When
    action: str
    reason: str
    cool_down_s: float
    most_firings: int
    hand_off: bool = False
    escalate: Escalation | None = None

    def __post_init__(self) -> None:
        _name("name", self.name)
        _name("action", self.action)
        _text("reason", self.reason)
        _number("cool_down_s", self.cool_down_s, 0, DAY_S)
        _number("most_firings", self.most_firings, 1, MAX_FIRINGS)
        if self.escalate and self.escalate.after >= self.most_firings:
            raise InvalidPolicy(
                f"escalate.after: got {self.escalate.after} of at most {self.most_firings} firings; expected fewer"
            )


@dataclass(frozen=True)
class HandOff:
    """to: who takes over, in words; quiet_s: how long the policy then does nothing by itself."""

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    to: str
    quiet_s: float

    def __post_init__(self) -> None:
        _text("to", self.to)
        _number("quiet_s", self.quiet_s, 0, DAY_S)


@dataclass(frozen=True)
class Policy:
    """A whole policy.

    context, exemption: where it is meant to be used, which decides the modalities (`cmt_session.context`); states: each
    name's labels; rules: the first that holds and may fire does; gap_s: least time between any two actions;
    trend_per_min: a probability's change a minute from which it is rising or falling; tracking: how its sessions are
    tracked. Raises InvalidPolicy.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    name: str
    about: str
    context: Context
    states: Mapping[str, tuple[str, ...]]
    rules: tuple[Rule, ...]
    hand_off: HandOff
    gap_s: float = 0.0
    trend_per_min: float = 0.5
    exemption: Exemption | None = None
    tracking: TrackerOptions = DEFAULT_TRACKER_OPTIONS

    def __post_init__(self) -> None:
        _name("name", self.name)
        _text("about", self.about)
        ruling(self.context, self.exemption)
        _number("gap_s", self.gap_s, 0, DAY_S)
        _number("trend_per_min", self.trend_per_min, 0.01, 60)
        _check_states(self.states)
        if not 1 <= len(self.rules) <= MAX_RULES:
            raise InvalidPolicy(f"rules: got {len(self.rules)}; expected 1 to {MAX_RULES}")
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise InvalidPolicy(f"rules: got the name {max(names, key=names.count)!r} twice; expected different names")
        known = {*self.states, *RESERVED}
        for rule in self.rules:
            if unknown := sorted(set(rule.when.state) - known):
                expected = ", ".join(sorted(known))
                raise InvalidPolicy(f"rules.{rule.name}.when.state: got {unknown[0]!r}; expected one of {expected}")

    @cached_property
    def digest(self) -> str:
        """Names this policy in a state."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def options(self, where: Ruling | None = None) -> TrackerOptions:
        """Its tracking, of the modalities alone that may be read there; by default in its own context."""
        allowed = (where or ruling(self.context, self.exemption)).modalities
        return replace(self.tracking, modalities=tuple(m for m in self.tracking.modalities if m in allowed))

    @cached_property
    def default_options(self) -> TrackerOptions:
        return self.options()

    @cached_property
    def state_of(self) -> dict[str, str]:
        """The state of each label, by the label's one name (`cmt_pipeline.synonyms`)."""
        return {canonical(label): state for state, labels in self.states.items() for label in labels}


def _check_states(states: Mapping[str, tuple[str, ...]]) -> None:
    if not 1 <= len(states) <= MAX_STATES:
        raise InvalidPolicy(f"states: got {len(states)}; expected 1 to {MAX_STATES}")
    seen: dict[str, str] = {}
    for state, labels in states.items():
        _name("states", state)
        if state in RESERVED:
            raise InvalidPolicy(f"states: got {state!r}, which every policy has; expected a name of your own")
        if not labels:
            raise InvalidPolicy(f"states.{state}: got no label; expected one or more")
        for label in labels:
            other = seen.setdefault(canonical(label), state)
            if other != state:
                raise InvalidPolicy(f"states: got {label!r} in {other} and in {state}; expected it in one of them")


def _number(name: str, value: object, least: float, most: float) -> None:
    if not is_number(value) or not least <= value <= most:
        raise InvalidPolicy(f"{name}: got {shown(value)}; expected a number from {least:g} to {most:g}")


def _name(where: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise InvalidPolicy(
            f"{where}: got {shown(value)}; expected lower-case letters, digits and _, such as slow_down"
        )


def _text(where: str, value: str) -> None:
    if not value.strip() or len(value) > MAX_TEXT:
        raise InvalidPolicy(f"{where}: got {len(value)} characters; expected a sentence of at most {MAX_TEXT}")
