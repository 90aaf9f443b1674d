"""What a rule is, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmt_server.advisories import TritonVersion

#: error: it crashes or hangs the server, gives wrong answers, refuses to load or lets strangers in.
#: warning: it costs time, does nothing, or bites in some requests or upgrades alone.
Severity = Literal["error", "warning"]

LONGEST_TEXT = 500  # characters of a finding that repeats what a file or a server said


@dataclass(frozen=True)
class Versions:
    """The Triton versions that a trap holds for: all up to `last`, or all that are known."""

    last: TritonVersion | None = None

    def __contains__(self, version: TritonVersion) -> bool:
        return self.last is None or version <= self.last

    def __str__(self) -> str:
        return "all" if self.last is None else f"up to {self.last[0]}.{self.last[1]}"


ALL_VERSIONS = Versions()


@dataclass(frozen=True)
class Rule:
    """A known trap. id: stable, for scripts; why: what happens; fix: what to do about it."""

    id: str
    severity: Severity
    why: str
    fix: str
    versions: Versions = ALL_VERSIONS


@dataclass(frozen=True)
class Finding:
    """A trap that was found. where: a file or URL; model: "" when it is about the whole server."""

    rule: Rule
    severity: Severity
    where: str
    model: str
    what: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON, with the rule's advice."""
        return {
            "rule": self.rule.id,
            "severity": self.severity,
            "where": self.where,
            "model": self.model,
            "what": self.what,
            "why": self.rule.why,
            "fix": self.rule.fix,
            "triton_versions": str(self.rule.versions),
        }


def finding(rule: Rule, where: str, model: str, what: str, severity: Severity | None = None) -> Finding:
    """A finding of the rule's own severity unless given otherwise. Foreign text is made printable and cut."""
    return Finding(rule, severity or rule.severity, printable(where), printable(model), printable(what))


def printable(text: str) -> str:
    """One line of at most LONGEST_TEXT characters that can't steer a terminal."""
    line = " ".join(text.split())
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return clean if len(clean) <= LONGEST_TEXT else clean[: LONGEST_TEXT - 1] + "…"
