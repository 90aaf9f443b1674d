"""What can be wrong with what a caller gives.

SessionError (a ValueError)
├── InvalidEvent     an observation that can't be one
├── InvalidState     a state that no session made, or of another version
└── InvalidPolicy    a policy that can't be read, or that can't work
"""

from __future__ import annotations


class SessionError(ValueError):
    """The message says what was got, what was expected and how to mend it."""


class InvalidEvent(SessionError):
    """An observation that can't be one."""


class InvalidState(SessionError):
    """A state that no session made, or of another version."""


class InvalidPolicy(SessionError):
    """A policy that can't be read, or that can't work."""
