"""What a policy remembers of a session: part of the state that the caller keeps, bounded whatever happens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cmt_session.errors import InvalidState
from cmt_session.fields import Fields
from cmt_session.observation import MAX_DIGEST
from cmt_session.policy import MAX_ESCALATE_AFTER, MAX_FIRINGS, MAX_RULES, NAME, NO_EVIDENCE

MAX_SPANS = 64  # of the latest states; a share over more than they cover isn't known


@dataclass(frozen=True)
class Span:
    """A state of the policy, and when it began; it ends where the next begins."""

    state: str
    since_s: float


@dataclass(frozen=True)
class Firings:
    """Of one rule. count: in the session; times_s: of the latest, as many as its escalation looks back to."""

    count: int
    last_s: float
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class PolicyState:
    """policy: digest of the policy; spans: the latest states, the present one last; fired: by rule; acted_s: when any
    rule fired last; handed_off_s: when a person took over, None while none has."""

    policy: str = ""
    spans: tuple[Span, ...] = (Span(NO_EVIDENCE, 0.0),)
    fired: Mapping[str, Firings] = field(default_factory=dict)
    acted_s: float | None = None
    handed_off_s: float | None = None

    @property
    def state(self) -> str:
        return self.spans[-1].state

    @property
    def since_s(self) -> float:
        return self.spans[-1].since_s

    def share(self, states: tuple[str, ...], over_s: float, clock_s: float) -> float | None:
        """Of the last over_s seconds, how much of it these states held; None where that is longer than is known."""
        begin_s = clock_s - over_s
        if begin_s < self.spans[0].since_s:
            return None
        ends = (*(span.since_s for span in self.spans[1:]), clock_s)
        held = (
            max(0.0, end_s - max(begin_s, span.since_s))
            for span, end_s in zip(self.spans, ends, strict=True)
            if span.state in states
        )
        return math.fsum(held) / over_s

    def entered(self, state: str, clock_s: float) -> PolicyState:
        """The same, in a state from now on."""
        if state == self.state:
            return self
        return replace(self, spans=(*self.spans, Span(state, clock_s))[-MAX_SPANS:])

    def to_json(self) -> dict[str, Any]:
        """What `policy_state_from_json` reads."""
        return asdict(self)


def policy_state_from_json(values: Any, clock_s: float, where: str = "state.policy") -> PolicyState:
    """clock_s: of the session. Raises InvalidState for anything that no policy could have left."""
    fields = Fields(values, where, InvalidState, PolicyState.__dataclass_fields__)
    spans = fields.raw("spans", list, f"1 to {MAX_SPANS} spans")
    fired = fields.raw("fired", dict, "an object")
    if not 1 <= len(spans) <= MAX_SPANS:
        raise fields.wrong("spans", f"1 to {MAX_SPANS} spans")
    if len(fired) > MAX_RULES or not all(isinstance(name, str) and NAME.fullmatch(name) for name in fired):
        raise fields.wrong("fired", f"names of at most {MAX_RULES} rules")
    read = tuple(_span(value, f"{where}.spans.{place}", clock_s) for place, value in enumerate(spans))
    if list(read) != sorted(read, key=lambda span: span.since_s):
        raise fields.wrong("spans", "spans in the order of their times")
    return PolicyState(
        fields.text("policy", MAX_DIGEST),
        read,
        {name: _firings(value, f"{where}.fired.{name}", clock_s) for name, value in fired.items()},
        fields.maybe("acted_s", 0, clock_s),
        fields.maybe("handed_off_s", 0, clock_s),
    )


def _span(values: Any, where: str, clock_s: float) -> Span:
    fields = Fields(values, where, InvalidState, Span.__dataclass_fields__)
    state = fields.text("state", 64)
    if not NAME.fullmatch(state):
        raise fields.wrong("state", "a state's name")
    return Span(state, fields.number("since_s", 0, clock_s))


def _firings(values: Any, where: str, clock_s: float) -> Firings:
    fields = Fields(values, where, InvalidState, Firings.__dataclass_fields__)
    times = fields.raw("times_s", list, "a list of times")
    if len(times) > MAX_ESCALATE_AFTER:
        raise fields.wrong("times_s", f"at most {MAX_ESCALATE_AFTER} times")
    return Firings(
        fields.count("count", MAX_FIRINGS),
        fields.number("last_s", 0, clock_s),
        fields.numbers("times_s", len(times), 0, clock_s),
    )
