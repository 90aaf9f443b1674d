"""A session: tracking and policy together, one observation after another, with a state that the caller keeps.

No server holds anything: whoever has the state, the options and the policy goes on, on any machine. A state isn't
signed: a caller who forges one misleads its own session, and can do no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmt_session.decide import Decision, decide
from cmt_session.errors import InvalidState
from cmt_session.fields import Fields, object_of
from cmt_session.observation import Observation
from cmt_session.options import DEFAULT_TRACKER_OPTIONS, TrackerOptions
from cmt_session.policy import Policy
from cmt_session.policy_state import PolicyState, policy_state_from_json
from cmt_session.tracker import Reading, observe
from cmt_session.tracker_state import TrackerState, tracker_from_json

STATE_VERSION = 1
MAX_STATE_BYTES = 131_072  # of the largest state that a session makes, and some


@dataclass(frozen=True)
class SessionState:
    """All that a session is. `SessionState()` is its beginning."""

    tracker: TrackerState = field(default_factory=TrackerState)
    policy: PolicyState = field(default_factory=PolicyState)

    def to_json(self) -> dict[str, Any]:
        """Of types that `json.dumps` takes."""
        return {"version": STATE_VERSION, "tracker": self.tracker.to_json(), "policy": self.policy.to_json()}

    def to_text(self) -> str:
        """The same as JSON, on one line."""
        return json.dumps(self.to_json(), separators=(",", ":"))

    @classmethod
    def from_json(cls, value: str | bytes | Mapping[str, Any]) -> SessionState:
        """What `to_json` or `to_text` gave, exactly. Raises InvalidState for anything else."""
        values = object_of(value, MAX_STATE_BYTES, InvalidState) if isinstance(value, str | bytes) else value
        fields = Fields(values, "state", InvalidState, ("version", "tracker", "policy"))
        if fields.count("version", 1_000_000) != STATE_VERSION:
            raise fields.wrong("version", f"{STATE_VERSION}; begin a new session")
        tracker = tracker_from_json(fields.raw("tracker", Mapping, "an object"))
        return cls(tracker, policy_state_from_json(fields.raw("policy", Mapping, "an object"), tracker.clock_s))


@dataclass(frozen=True)
class Step:
    """What a session makes of one observation. decision: None without a policy."""

    reading: Reading
    decision: Decision | None

    def to_json(self) -> dict[str, Any]:
        decision = self.decision.to_json() if self.decision else None
        return {"reading": self.reading.to_json(), "decision": decision}


def advance(
    state: SessionState,
    seen: Observation,
    policy: Policy | None = None,
    options: TrackerOptions | None = None,
) -> tuple[SessionState, Step]:
    """The next state, and what is known and decided now: a pure function.

    options: by default the policy's, which read what is allowed in its context alone.
    """
    tracker, reading = observe(state.tracker, seen, options or default_options(policy))
    if policy is None:
        return SessionState(tracker, state.policy), Step(reading, None)
    memory, decision = decide(policy, state.policy, reading)
    return SessionState(tracker, memory), Step(reading, decision)


def default_options(policy: Policy | None) -> TrackerOptions:
    return policy.default_options if policy else DEFAULT_TRACKER_OPTIONS


class Session:
    """The same with the state in it. policy: None tracks alone; state: of a session that goes on."""

    def __init__(
        self,
        policy: Policy | None = None,
        options: TrackerOptions | None = None,
        state: SessionState | None = None,
    ) -> None:
        self.policy, self.options, self.state = policy, options or default_options(policy), state or SessionState()

    def observe(self, seen: Observation) -> Step:
        """Takes in one observation."""
        self.state, step = advance(self.state, seen, self.policy, self.options)
        return step
