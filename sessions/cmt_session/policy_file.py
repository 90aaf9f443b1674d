"""Policies as YAML files. Needs pydantic and PyYAML: pip install 'cmt-triton[policy]'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt_pipeline.labels import labels_of
from cmt_pipeline.synonyms import canonical
from cmt_session.errors import InvalidPolicy
from cmt_session.policy import NO_EVIDENCE, RESERVED, Policy

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SHIPPED = Path(__file__).parent / "policies"
SUFFIXES = (".yaml", ".yml")
MAX_FILE_BYTES = 65_536


def shipped_policies() -> tuple[str, ...]:
    """Names of the policies that come with this package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def shipped_policy(name: str) -> Policy:
    """Raises InvalidPolicy for a name that isn't shipped."""
    if name not in shipped_policies():
        raise InvalidPolicy(f"policy: got {name!r}; expected a .yaml file, or one of {', '.join(shipped_policies())}")
    return policy_from_file(SHIPPED / f"{name}.yaml")


def open_policy(name: str | Path) -> Policy:
    """A shipped policy by its name, or a file. Raises InvalidPolicy, OSError."""
    path = Path(name)
    return policy_from_file(path) if path.suffix in SUFFIXES else shipped_policy(str(name))


def policy_from_file(path: Path) -> Policy:
    """Raises InvalidPolicy, which names the file and the place in it; OSError."""
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES + 1)
    try:
        return policy_from_yaml(text)
    except InvalidPolicy as error:
        raise InvalidPolicy(f"{path}: {error}") from None


def policy_from_yaml(text: str | bytes) -> Policy:
    """Raises InvalidPolicy; every fault that is found is a line of its message."""
    try:
        from pydantic import TypeAdapter, ValidationError

        from cmt_session.plain_yaml import loaded
    except ImportError as error:
        raise InvalidPolicy(
            f"a policy's file needs pydantic and PyYAML ({error}): pip install 'cmt-triton[policy]'"
        ) from None
    if len(text) > MAX_FILE_BYTES:
        raise InvalidPolicy(f"got more than {MAX_FILE_BYTES:,} bytes; expected a policy")
    try:
        values = json.dumps(loaded(text))
    except TypeError as error:  # a date, bytes, a set
        raise InvalidPolicy(f"got YAML of other than text, numbers, lists and mappings ({error})") from None
    try:
        return TypeAdapter(Policy).validate_json(values, strict=True)  # of JSON, since its lists become tuples
    except ValidationError as error:
        raise InvalidPolicy("\n".join(_told(fault) for fault in error.errors(include_url=False))) from None


def _told(fault: ErrorDetails) -> str:
    """`rules.2.when.for_s: what is wrong`, rules counted from 1."""
    place = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    hint = ""
    if isinstance(fault["input"], bool) and fault["type"] == "string_type":
        hint = " (YAML reads yes, no, on and off as true and false: put it in quotes)"
    return f"{place}: {message}{hint}" if place else message


def warnings_of(policy: Policy, label_set: str | None = None) -> list[str]:
    """What a policy may do but likely isn't meant to. label_set: of the releases that will answer, if known."""
    found = []
    used = {state for rule in policy.rules for state in rule.when.state}
    found += [f"states.{name}: no rule asks for it" for name in policy.states if name not in used]
    if NO_EVIDENCE not in used:
        found.append("no rule for no_evidence: where nothing can be read, the policy abstains and does nothing")
    if not any(rule.hand_off or (rule.escalate and rule.escalate.hand_off) for rule in policy.rules):
        found.append("no rule hands off to a person")
    for rule in policy.rules:
        if not rule.cool_down_s and not policy.gap_s and rule.most_firings > 1:
            found.append(f"rules.{rule.name}: without a cool-down it may fire at every event")
    return found + (_out_of_reach(policy, label_set) if label_set else [])


def _out_of_reach(policy: Policy, label_set: str) -> list[str]:
    reached = {policy.state_of.get(canonical(label)) for label in labels_of(label_set)} | set(RESERVED)
    return [
        f"rules.{rule.name}: never fires with the labels of {label_set}, which has none of {', '.join(rule.when.state)}"
        for rule in policy.rules
        if not reached & set(rule.when.state)
    ]


def describe(policy: Policy) -> dict[str, Any]:
    """A policy in few words, for whoever lists it."""
    return {"name": policy.name, "digest": policy.digest, "context": policy.context, "rules": len(policy.rules)}
