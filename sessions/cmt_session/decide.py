"""What a policy decides after a reading: a pure function of what it remembers and of what is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from cmt_pipeline.synonyms import canonical
from cmt_session.policy import NO_EVIDENCE, OTHER, RESERVED, UNSETTLED, Policy, Rule, When
from cmt_session.policy_state import Firings, PolicyState
from cmt_session.tracker import Reading

#: `act`: do this; `hold`: enough is known, and nothing is due; `abstain`: too little is known to decide.
Kind = Literal["act", "hold", "abstain"]


@dataclass(frozen=True)
class Decision:
    """What to do now.

    action, rule: of an `act`, else None. why: for programs: `rule` or `escalated` of an act; of a hold `no_rule`,
    `cooling_down`, `exhausted` (a rule held, but may not fire now), `handed_off` (a person has taken over) or the
    outcome of an event out of order; of an abstention `no_evidence`, `unsettled`, or why the answer doesn't count.
    reason: in words. hand_off_to: who takes over, None where nobody does. state: of the policy, since since_s.
    """

    kind: Kind
    why: str
    reason: str
    state: str
    since_s: float
    action: str | None = None
    rule: str | None = None
    hand_off_to: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


REASONS = {
    "no_evidence": "Nothing that counts was seen or heard lately; that is no evidence, which isn't neutral.",
    "unsettled": "What was seen and heard doesn't agree on a state for long enough.",
    "absent": "Nothing was there to be read.",
    "missing": "Something that has to be seen or heard is missing.",
    "not_allowed": "This was made from a modality that may not be used here.",
    "untrained": "The answer was made with random weights and means nothing.",
    "poor_input": "The picture or the sound is too poor to be read.",
    "unlikely": "No label is likely enough.",
    "spread": "The answer is spread over too many labels.",
    "late": "The event lies before one that was taken already.",
    "duplicate": "The event was taken already.",
    "no_rule": "No rule is due.",
    "cooling_down": "What is due was done a short while ago.",
    "exhausted": "What is due was done often enough.",
    "handed_off": "A person has taken over.",
}


def decide(policy: Policy, memory: PolicyState, reading: Reading) -> tuple[PolicyState, Decision]:
    """What the policy remembers next, and its decision. The first rule that holds and may fire does."""
    if reading.outcome in ("late", "duplicate"):
        return memory, _nothing(memory, "hold", reading.outcome)
    memory = _known(policy, memory).entered(state_of(policy, reading), reading.clock_s)
    if memory.handed_off_s is not None:
        if reading.clock_s < memory.handed_off_s + policy.hand_off.quiet_s:
            return memory, _nothing(memory, "hold", "handed_off")
        memory = replace(memory, handed_off_s=None)
    blocked = ""
    for rule in policy.rules:
        if holds(rule.when, policy, memory, reading):
            why = _blocked(rule, policy, memory, reading.clock_s)
            if not why:
                return _fired(rule, policy, memory, reading.clock_s)
            blocked = blocked or why
    if reading.refused:
        return memory, _nothing(memory, "abstain", reading.refused[0])
    if memory.state in (NO_EVIDENCE, UNSETTLED):
        return memory, _nothing(memory, "abstain", memory.state)
    return memory, _nothing(memory, "hold", blocked or "no_rule")


def state_of(policy: Policy, reading: Reading) -> str:
    """The policy's name for what is known."""
    if reading.label is None:
        return NO_EVIDENCE if reading.standing == "no_evidence" else UNSETTLED
    return policy.state_of.get(canonical(reading.label), OTHER)


def holds(when: When, policy: Policy, memory: PolicyState, reading: Reading) -> bool:
    """Whether everything that a rule asks for is so. A state of the person needs an answer that counts."""
    elapsed_s = reading.clock_s - memory.since_s
    if memory.state not in when.state or elapsed_s < when.for_s:
        return False
    if when.until_s is not None and elapsed_s > when.until_s:
        return False
    if when.share is not None:
        share = memory.share(when.state, when.share.over_s, reading.clock_s)
        if share is None or share < when.share.at_least:
            return False
    return memory.state in RESERVED[:2] or (not reading.refused and _reads(when, policy, reading))


def _reads(when: When, policy: Policy, reading: Reading) -> bool:
    """Certainty, trend and valence."""
    labels = [name for name in reading.probabilities if policy.state_of.get(canonical(name)) in when.state]
    if math.fsum(reading.probabilities[name] for name in labels) < when.certainty:
        return False
    if when.trend != "any":
        rate = math.fsum(reading.trend.shares[name] for name in labels) if reading.trend else 0.0
        direction = (
            "rising" if rate >= policy.trend_per_min else "falling" if rate <= -policy.trend_per_min else "steady"
        )
        if direction != when.trend:
            return False
    if when.valence_below is not None and not (reading.valence is not None and reading.valence < when.valence_below):
        return False
    return when.valence_above is None or (reading.valence is not None and reading.valence > when.valence_above)


def _known(policy: Policy, memory: PolicyState) -> PolicyState:
    """Of another policy than this one only what has the same name is remembered."""
    if memory.policy == policy.digest:
        return memory
    names = {rule.name for rule in policy.rules}
    return replace(memory, policy=policy.digest, fired={name: f for name, f in memory.fired.items() if name in names})


def _blocked(rule: Rule, policy: Policy, memory: PolicyState, clock_s: float) -> str:
    """Why a rule that holds may not fire now; empty where it may."""
    fired = memory.fired.get(rule.name)
    if fired is not None and fired.count >= rule.most_firings:
        return "exhausted"
    cooling = fired is not None and clock_s < fired.last_s + rule.cool_down_s
    if cooling or (memory.acted_s is not None and clock_s < memory.acted_s + policy.gap_s):
        return "cooling_down"
    return ""


def _fired(rule: Rule, policy: Policy, memory: PolicyState, clock_s: float) -> tuple[PolicyState, Decision]:
    before = memory.fired.get(rule.name, Firings(0, 0.0))
    escalation = rule.escalate
    recent = [t for t in before.times_s if escalation and t >= clock_s - escalation.within_s]
    escalated = escalation if escalation and len(recent) >= escalation.after else None
    times = () if escalated or not escalation else (*before.times_s, clock_s)[-escalation.after :]
    due = escalated or rule
    memory = replace(
        memory,
        fired={**memory.fired, rule.name: Firings(before.count + 1, clock_s, times)},
        acted_s=clock_s,
        handed_off_s=clock_s if due.hand_off else None,
    )
    to = policy.hand_off.to if due.hand_off else None
    why = "escalated" if escalated else "rule"
    return memory, Decision("act", why, due.reason, memory.state, memory.since_s, due.action, rule.name, to)


def _nothing(memory: PolicyState, kind: Kind, why: str) -> Decision:
    return Decision(kind, why, REASONS[why], memory.state, memory.since_s)
