"""RBAC of the emulated API server: rules of a Role, and which of their rights were used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: group, resource (with subresource), verb, and the resourceNames of the rule
Right = tuple[str, str, str, tuple[str, ...]]


@dataclass
class Rights:
    """Of one user; rules None: may do everything. used: rights that let a request through; refused: requests."""

    rules: list[dict[str, Any]] | None = None
    used: set[Right] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)

    @property
    def granted(self) -> set[Right]:
        return {
            (group, resource, verb, tuple(rule.get("resourceNames", ())))
            for rule in self.rules or ()
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    def allow(self, group: str, resource: str, verb: str, name: str) -> bool:
        """name: of the object; "" for one that is being made, or for many."""
        if self.rules is None:
            return True
        for right in self.granted:
            if right[:3] == (group, resource, verb) and (not right[3] or name in right[3]):
                self.used.add(right)
                return True
        self.refused.append(f"{verb} {resource} {name}".strip())
        return False
