"""Objects of the emulated API server with their versions, generations and history."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from emulated_api.ownership import Owners

Object = dict[str, Any]
#: plural, namespace ("" without one), name
Key = tuple[str, str, str]


class Store:
    """Give and take copies. changed: notified at every change; holds the lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 1
        self.oldest = 0  # watches from before are refused
        self.history: list[tuple[int, str, Key, Object]] = []
        self.owners: dict[Key, Owners] = {}
        self._objects: dict[Key, Object] = {}

    def get(self, key: Key) -> Object | None:
        with self.changed:
            return copy.deepcopy(self._objects.get(key))

    def items(self, plural: str) -> Iterator[Object]:
        with self.changed:
            found = [copy.deepcopy(item) for key, item in sorted(self._objects.items()) if key[0] == plural]
        return iter(found)

    def put(self, key: Key, item: Object) -> Object:
        """Stores it as a new version; a new generation where its spec changed, of a Deployment its annotations too.

        (registry/apps/deployment/strategy.go: annotations are copied to the ReplicaSets.)
        """
        with self.changed:
            before, item = self._objects.get(key), copy.deepcopy(item)
            self.version += 1
            metadata = item["metadata"]
            known = before["metadata"] if before else {}
            same = before is not None and before.get("spec") == item.get("spec")
            if item["kind"] == "Deployment":
                same = same and known.get("annotations", {}) == metadata.get("annotations", {})
            metadata["generation"] = known.get("generation", 0) + (not same)
            metadata["resourceVersion"] = str(self.version)
            metadata["uid"] = known.get("uid") or str(uuid.uuid4())
            metadata["creationTimestamp"] = known.get("creationTimestamp") or now_text()
            self._objects[key] = item
            self._tell("MODIFIED" if before else "ADDED", key, item)
            return copy.deepcopy(item)

    def remove(self, key: Key) -> None:
        with self.changed:
            item = self._objects.pop(key, None)
            self.owners.pop(key, None)
            if item is not None:
                self.version += 1
                item["metadata"]["resourceVersion"] = str(self.version)
                self._tell("DELETED", key, item)

    def forget_history(self) -> None:
        """What a busy server does: older versions can't be watched from any more."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()
            self.changed.notify_all()

    def _tell(self, event: str, key: Key, item: Object) -> None:
        self.history.append((self.version, event, key, copy.deepcopy(item)))
        self.changed.notify_all()


def selects(labels: dict[str, str], item: Object) -> bool:
    return labels.items() <= item["metadata"].get("labels", {}).items()


def now_text() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
