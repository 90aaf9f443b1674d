"""Affect over time, and what an application does about it: sessions whose caller keeps the state, policies, contexts.

    from cmt_session import Observation, Session, shipped_policy

    session = Session(policy=shipped_policy("customer_service"))
    step = session.observe(Observation.of(answer, end_s=12.5))
    print(step.reading.label, step.decision.action, step.decision.reason)

Importing it needs Python alone; reading a policy's file needs pydantic and PyYAML.
"""

from cmt_session.context import Ruling, ruling
from cmt_session.decide import Decision
from cmt_session.errors import InvalidEvent, InvalidPolicy, InvalidState, SessionError
from cmt_session.observation import Observation
from cmt_session.options import StreamOptions, TrackerOptions
from cmt_session.policy import Policy
from cmt_session.policy_file import open_policy, policy_from_yaml, shipped_policies, shipped_policy
from cmt_session.session import Session, SessionState, Step, advance
from cmt_session.tracker import Reading

__all__ = [
    "Decision",
    "InvalidEvent",
    "InvalidPolicy",
    "InvalidState",
    "Observation",
    "Policy",
    "Reading",
    "Ruling",
    "Session",
    "SessionError",
    "SessionState",
    "Step",
    "StreamOptions",
    "TrackerOptions",
    "advance",
    "open_policy",
    "policy_from_yaml",
    "ruling",
    "shipped_policies",
    "shipped_policy",
]
