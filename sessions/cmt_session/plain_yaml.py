"""YAML of plain values: no references, of which a line makes megabytes, and no name twice, of which one would win."""

from __future__ import annotations

from typing import Any

import yaml

from cmt_session.errors import InvalidPolicy

MOST_NESTED = 16


def loaded(text: str | bytes) -> Any:
    """What a YAML text holds. Raises InvalidPolicy, with the line."""
    try:
        _check_events(text)
        _check_names(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        told = f"got no YAML ({getattr(error, 'problem', None) or error})"
        raise _at(getattr(error, "problem_mark", None), told) from None
    except InvalidPolicy:
        raise
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise InvalidPolicy(f"got no YAML of plain values ({error})") from None


def _check_events(text: str | bytes) -> None:
    """Before anything is built: what is nested deeply takes PyYAML minutes."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _at(event.start_mark, "got a reference (*); expected it written out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED:
            raise _at(event.start_mark, f"got more than {MOST_NESTED} levels; expected a policy")


def _check_names(node: Any) -> None:
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_names(value)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key.start_mark, "got a name that is no text; expected a word")
            if key.value in seen:
                raise _at(key.start_mark, f"got {key.value!r} twice; expected different names")
            seen.add(key.value)
            _check_names(value)


def _at(mark: Any, message: str) -> InvalidPolicy:
    return InvalidPolicy(f"line {mark.line + 1}: {message}" if mark else message)
