"""Puts every rule to a repository, to a running server, or to both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt_server.advisories import TritonVersion
from cmt_server.doctor import ensemble_rules, environment, model_rules, repository, server_rules, wiring_rules
from cmt_server.doctor.environment import StubEnvironment
from cmt_server.doctor.finding import Finding, Rule
from cmt_server.doctor.repository import Repository, read_repositories
from cmt_server.doctor.running import Observation

CONFIG_CHECKS = ensemble_rules.CHECKS | wiring_rules.CHECKS | model_rules.CHECKS
#: Every rule, in the order in which findings are listed.
RULES: tuple[Rule, ...] = (
    repository.UNREADABLE,
    repository.NAME_DIFFERS,
    repository.DUPLICATE,
    repository.VERSION_FOLDER,
    repository.NOT_A_MODEL,
    *CONFIG_CHECKS,
    environment.NUMPY_2,
    environment.PLAN_MISFIT,
    *server_rules.CHECKS,
)


@dataclass(frozen=True)
class Diagnosis:
    """version: of Triton, given or as the server reports; models: how many were read; notes: what couldn't be seen."""

    findings: tuple[Finding, ...]
    version: TritonVersion | None
    models: int
    notes: tuple[str, ...] = ()

    def count(self, severity: str) -> int:
        return sum(found.severity == severity for found in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "triton_version": ".".join(map(str, self.version)) if self.version else None,
            "models": self.models,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": list(self.notes),
            "findings": [found.to_json() for found in self.findings],
        }


def diagnose(
    folders: Sequence[Path],
    seen: Observation | None = None,
    version: TritonVersion | None = None,
    stub: StubEnvironment | None = None,
    tensorrt: str | None = None,
) -> Diagnosis:
    """All that the rules find, errors first. Rules for other Triton versions are left out, where the version is known.

    folders: they form one repository; seen: a running server; stub, tensorrt: what would run python-backend models and
    TensorRT plans here, as of `stub_environment` and `tensorrt_here`.
    Raises FileNotFoundError for a folder that isn't there.
    """
    version = version or (seen.version if seen else None)
    read, findings = read_repositories(folders)
    for view in read:
        findings += _configurations(view)
        findings += environment.plan_misfits(view, tensorrt)
    if stub and folders and (version or stub.old_server):
        findings += environment.numpy_2(read[0], stub)
    names = {name for view in read for name in view.models}
    notes = []
    if seen:
        findings += _configurations(seen.repository)
        for check in server_rules.CHECKS.values():
            findings += check(seen)
        names |= set(seen.repository.models)
        if seen.index is None:
            notes.append(f"{seen.url} doesn't show its models without a token: only its openness was looked at")
    return Diagnosis(_ordered(findings, version), version, len(names), tuple(notes))


def _configurations(view: Repository) -> list[Finding]:
    return [found for check in CONFIG_CHECKS.values() for found in check(view)]


def _ordered(findings: Iterable[Finding], version: TritonVersion | None) -> tuple[Finding, ...]:
    """Each thing once, wherever it was seen first: in a file rather than on the server."""
    applying = [found for found in findings if version is None or version in found.rule.versions]
    once = {(found.rule.id, found.model, found.what): found for found in reversed(applying)}
    place = {rule.id: index for index, rule in enumerate(RULES)}
    return tuple(sorted(once.values(), key=lambda f: (f.severity != "error", place[f.rule.id], f.where, f.what)))
