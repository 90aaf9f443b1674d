"""Field ownership of the emulated API server.

After kubernetes.io/docs/reference/using-api/server-side-apply and sigs.k8s.io/structured-merge-diff: what a manager
applied before and leaves out now goes, unless another owns it too; applying a value that is there already shares it;
an update, and a write by a subresource, takes what it changed from everybody. Managers are told apart by their
operation as well: what `cmt-rollout` applied isn't what `cmt-rollout` updated.

Simplified: every leaf has owners; a list whose items all have a name (or port, or type) is a mapping by it, any other
list is one leaf. The real one knows each type's schema.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

Path = tuple[Any, ...]
#: name, and operation: Apply or Update
Manager = tuple[str, str]
Owners = dict[Manager, set[Path]]

KEYS = ("name", "containerPort", "port", "type")
#: Not anybody's: identity, and what the server itself writes.
NOBODYS = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"), ("metadata", "uid")}
SERVERS = {"resourceVersion", "generation", "creationTimestamp", "managedFields", "deletionTimestamp"}


@dataclass
class Conflict(Exception):
    """(manager's name, path) of fields that others own and that would change."""

    fields: list[tuple[str, Path]]


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    if isinstance(value, dict) and value:
        return {p: leaf for key, part in value.items() for p, leaf in leaves(part, (*path, key)).items()}
    if key := _key_of(value):
        return {p: leaf for part in value for p, leaf in leaves(part, (*path, (key, part[key]))).items()}
    return {path: value}


def owned_leaves(item: dict[str, Any]) -> dict[Path, Any]:
    return {path: value for path, value in leaves(item).items() if path not in NOBODYS and not _is_servers(path)}


def applied(
    live: dict[str, Any] | None, owners: Owners, manager: str, config: dict[str, Any], force: bool
) -> tuple[dict[str, Any], Owners]:
    """The object and its owners after a server-side apply. Raises Conflict."""
    wanted, own = owned_leaves(config), (manager, "Apply")
    if live is None:
        return copy.deepcopy(config), {own: set(wanted)}
    here, owners = owned_leaves(live), copy.deepcopy(owners)
    others = {other: paths for other, paths in owners.items() if other != own}
    lost = [
        (other, path)
        for path, value in wanted.items()
        if path in here and here[path] != value
        for other, paths in others.items()
        if path in paths
    ]
    if lost and not force:
        raise Conflict([(name, path) for (name, _), path in lost])
    for other, path in lost:
        owners[other].discard(path)
    result = copy.deepcopy(live)
    for path in owners.get(own, set()) - wanted.keys():
        if not any(path in paths for paths in others.values()):
            _remove(result, path)
    for path, value in wanted.items():
        if value != {} or not any(other[: len(path)] == path for other in here):  # an empty mapping adds nothing
            _set(result, path, copy.deepcopy(value))
    owners[own] = set(wanted)
    return result, owners


def updated(before: dict[str, Any], after: dict[str, Any], owners: Owners, manager: Manager) -> Owners:
    """Owners after an update: what it changed is the manager's alone."""
    old, new = owned_leaves(before), owned_leaves(after)
    changed = {path for path in new if path not in old or old[path] != new[path]}
    kept = {other: {path for path in paths if path in new and path not in changed} for other, paths in owners.items()}
    if changed:
        kept[manager] = kept.get(manager, set()) | changed
    return kept


def merged(before: Any, patch: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def strategically_merged(before: Any, patch: Any) -> Any:
    """A strategic merge patch, as kubectl's `set` and `rollout` send: lists of named things are merged by name."""
    if isinstance(patch, dict):
        result = dict(before) if isinstance(before, dict) else {}
        for key, value in patch.items():
            if key.startswith("$"):  # directives: here only the order of a list
                continue
            if value is None:
                result.pop(key, None)
            else:
                result[key] = strategically_merged(result.get(key), value)
        return result
    if (key := _key_of(patch)) and isinstance(before, list):
        both = {part[key]: part for part in before}
        both.update({part[key]: strategically_merged(both.get(part[key]), part) for part in patch})
        return list(both.values())
    return patch


def dotted(path: Path) -> str:
    return "".join(f'[{part[0]}="{part[1]}"]' if isinstance(part, tuple) else f".{part}" for part in path)


def _is_servers(path: Path) -> bool:
    return path[0] == "status" or (path[0] == "metadata" and path[1] in SERVERS)


def _key_of(value: Any) -> str | None:
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        return None
    return next((key for key in KEYS if all(key in part for part in value)), None)


def _step(item: Any, part: Any, make: bool) -> Any:
    if not isinstance(part, tuple):
        if make and not isinstance(item.get(part), (dict, list)):
            item[part] = None
        return item.get(part)
    for entry in item:
        if entry.get(part[0]) == part[1]:
            return entry
    if make:
        item.append({part[0]: part[1]})
        return item[-1]
    return None


def _set(item: Any, path: Path, value: Any) -> None:
    for part, following in itertools.pairwise(path):
        deeper = _step(item, part, make=True)
        if deeper is None:
            item[part] = deeper = [] if isinstance(following, tuple) else {}
        item = deeper
    if isinstance(path[-1], tuple):
        _step(item, path[-1], make=True)
    else:
        item[path[-1]] = value


def _remove(item: Any, path: Path) -> None:
    """The leaf, and whatever holds nothing any more."""
    way = [item]
    for part in path[:-1]:
        deeper = _step(way[-1], part, make=False)
        if deeper is None:
            return
        way.append(deeper)
    way[-1].pop(path[-1], None)
    for holder, part in zip(reversed(way[:-1]), reversed(path[:-1]), strict=True):
        if _step(holder, part, make=False):
            return
        if isinstance(part, tuple):
            holder[:] = [entry for entry in holder if entry]
        else:
            holder.pop(part, None)
