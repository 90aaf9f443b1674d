"""EmulatedApi: an HTTP server on 127.0.0.1 that answers as a Kubernetes API server would.

It has: versions and generations, optimistic conflicts, defaults, server-side apply with field managers (simplified, see
ownership.py), merge patches, dry runs, selectors, watches with bookmarks and expiry, evictions, scaling, leases, port
forwarding, admission (quotas, pod security, webhooks) with its warnings, RBAC that loads late, restarts and refusals on
demand. It hasn't: schemas, subresources beyond those, TLS. README.md says which documentation each follows.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from emulated_api.admission import admit, validate
from emulated_api.controllers import Controllers
from emulated_api.defaulting import default
from emulated_api.handler import Handler
from emulated_api.kubelet import Kubelet
from emulated_api.ownership import (
    Conflict,
    Manager,
    Owners,
    applied,
    dotted,
    merged,
    owned_leaves,
    strategically_merged,
    updated,
)
from emulated_api.requests import EXTENSIONS, KINDS, Kinds, Refused, Request
from emulated_api.rights import Rights
from emulated_api.store import Key, Object, Store, now_text

BOOKMARK_S, STEP_S = 0.3, 0.02
PATCHES = {
    "application/merge-patch+json": merged,
    "application/strategic-merge-patch+json": strategically_merged,
}


class EmulatedApi:
    """A context manager. users: token -> rights; backend: where a pod's forwarded port leads."""

    def __init__(self) -> None:
        self.store = Store()
        self.kubelet = Kubelet(self.store)
        self.controllers = Controllers(self.store, self.kubelet)
        self.kinds: Kinds = dict(KINDS)
        self.users = {"admin": Rights()}
        self.backend: Callable[[Object, int], tuple[str, int]] | None = None
        self.movers: list[Callable[[], None]] = [self.controllers.step]
        self.logs: Callable[[Request], str] | None = None
        self.before: list[Callable[[Request], None]] = []  # may raise Refused, or change the store
        self.asked: list[str] = []
        self.connections: set[socket.socket] = set()
        self.over = threading.Event()
        self.cut = threading.Event()
        self.cut_short = 0  # so many answers break off halfway
        self.port = 0
        self._rights_from_s = 0.0
        self._server: ThreadingHTTPServer | None = None
        self._others: list[ThreadingHTTPServer] = []
        self._mover = threading.Thread(target=self._move, daemon=True)

    def __enter__(self) -> EmulatedApi:
        self._listen()
        self._mover.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._mover.join()
        self._hang_up()
        for server in self._others:
            server.shutdown()
            server.server_close()

    def install(self) -> None:
        """The kinds of KEDA, of the Prometheus operator and of the Gateway API."""
        self.kinds |= EXTENSIONS

    def restart(self, down_s: float, rights_after_s: float = 0.0) -> None:
        """Every connection dies, and new ones are refused for a while. Back at once; what is stored stays.

        rights_after_s: so long nobody but an administrator has any, for Roles are read after it listens.
        """
        self._hang_up()
        self._rights_from_s = time.monotonic() + down_s + rights_after_s
        threading.Timer(down_s, self._listen).start()

    def second_server(self) -> str:
        """The URL of another server before the same store."""
        server = self._serve(0)
        self._others.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    def refuse(self, times: int, code: int = 429, retry_after_s: int | None = None) -> None:
        """The next requests get this answer."""
        left = [times]

        def refuse(_: Request) -> None:
            if left[0] > 0:
                left[0] -= 1
                headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
                raise Refused(code, "TooManyRequests", "too many requests, please try again later", headers)

        self.before.append(refuse)

    def kubeconfig(self, path: Path) -> Path:
        """A context for each user, named as its token is; `admin` is the current one."""
        names = list(self.users)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "emulated", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": name, "user": {"token": name}} for name in names],
            "contexts": [{"name": name, "context": {"cluster": "emulated", "user": name}} for name in names],
            "current-context": "admin",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def answer(self, request: Request, user: str) -> tuple[Object, list[str]]:
        """With the warnings about it."""
        self.authorize(request, user)
        for hook in list(self.before):
            hook(request)
        with self.store.changed:
            if request.subresource == "eviction":
                return self._evict(request), []
            if request.subresource == "scale":
                return self._scale(request), []
            if request.method == "GET":
                return self._get(request), []
            if request.method == "DELETE":
                return self._delete(request), []
            return self._create(request) if request.method == "POST" else self._change(request)

    def events(self, request: Request) -> Iterator[Object]:
        """Of a watch, until its time is over or it is cut off."""
        version = int(request.query.get("resourceVersion", self.store.version))
        end = time.monotonic() + float(request.query.get("timeoutSeconds", 60))
        told = time.monotonic()
        kind, _ = self.kinds[request.version][request.plural]
        while time.monotonic() < end and not self.over.is_set():
            with self.store.changed:
                if version < self.store.oldest:
                    status = Refused(410, "Expired", f"too old resource version: {version}").status
                    yield {"type": "ERROR", "object": status}
                    return
                new = [entry for entry in self.store.history if entry[0] > version]
                if not new:
                    self.store.changed.wait(0.05)
            for number, event, key, item in new:
                version = number
                if key[0] == request.plural and self._matches(request, item):
                    yield {"type": event, "object": item}
            if time.monotonic() - told > BOOKMARK_S:
                told = time.monotonic()
                mark = {"kind": kind, "metadata": {"resourceVersion": str(version)}}
                yield {"type": "BOOKMARK", "object": mark}

    def authorize(self, request: Request, user: str) -> None:
        rights = self.users.get(user)
        if rights is None:
            raise Refused(401, "Unauthorized", "Unauthorized")
        group = request.version.rpartition("/")[0]
        resource = "/".join(filter(None, (request.plural, request.subresource)))
        name = request.name or _pairs(request, "fieldSelector").get("metadata.name", "")
        where = f'in API group "{group}" in the namespace "{request.namespace}"'
        late = rights.rules is not None and time.monotonic() < self._rights_from_s
        verbs = _verbs(request)
        if _is_apply(request) and self.store.get(request.key) is None:
            verbs.append("create")  # apiserver/pkg/endpoints/handlers/patch.go authorizes a create on update so
        for verb in verbs:
            if late or not rights.allow(group, resource, verb, "" if verb == "create" and not request.name else name):
                why = f'User "{user}" cannot {verb} resource "{resource}" {where}'
                why += ': RBAC: role.rbac.authorization.k8s.io "cmt-rollout" not found' if late else ""
                raise Refused(403, "Forbidden", f'{resource} "{name}" is forbidden: {why}')

    def _get(self, request: Request) -> Object:
        if request.name:
            return self.there(request)
        items = [item for item in self.store.items(request.plural) if self._matches(request, item)]
        bare = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items]
        kind, _ = self.kinds[request.version][request.plural]
        return {"kind": f"{kind}List", "items": bare, "metadata": {"resourceVersion": str(self.store.version)}}

    def _create(self, request: Request) -> tuple[Object, list[str]]:
        item = default(request.body)
        item["metadata"].setdefault("namespace", request.namespace)
        key = (request.plural, request.namespace, item["metadata"]["name"])
        if self.store.get(key) is not None:
            raise Refused(409, "AlreadyExists", f'{request.plural} "{key[2]}" already exists')
        return self._keep(request, key, item, {(_manager(request), "Update"): set(owned_leaves(item))})

    def _delete(self, request: Request) -> Object:
        item = self.there(request)
        if request.plural == "pods":
            self.controllers.remove_pod(item)
        elif request.query.get("propagationPolicy") == "Foreground":  # a controller removes what it owns first
            item["metadata"]["deletionTimestamp"] = now_text()
            self.store.put(request.key, item)
        else:
            self.store.remove(request.key)
        if request.plural == "namespaces":
            for plural in [plural for kinds in self.kinds.values() for plural in kinds]:
                for inside in self.store.items(plural):
                    if inside["metadata"].get("namespace") == request.name:
                        self.store.remove((plural, request.name, inside["metadata"]["name"]))
        return {"kind": "Status", "status": "Success"}

    def _scale(self, request: Request) -> Object:
        """Read or set by anybody who may: kubectl scale, an autoscaler."""
        item = self.there(request)
        if request.method != "GET":
            self.controllers.scale(request.key, request.body["spec"]["replicas"], (_manager(request), "Update"))
            item = self.there(request)
        metadata = {key: item["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": metadata,
            "spec": {"replicas": item["spec"]["replicas"]},
        }

    def _change(self, request: Request) -> tuple[Object, list[str]]:
        kind = request.headers.get("Content-Type", "")
        if _is_apply(request):
            return self._apply(request)
        before = self.there(request)
        after = request.body
        if request.method == "PATCH" and kind not in PATCHES:
            raise Refused(415, "UnsupportedMediaType", f"{kind} isn't emulated")
        if request.method == "PATCH":
            after = PATCHES[kind](before, request.body)
        version = request.body.get("metadata", {}).get("resourceVersion")
        if version not in (None, before["metadata"]["resourceVersion"]):
            message = f"Operation cannot be fulfilled on {request.name}: the object has been modified"
            raise Refused(409, "Conflict", message)
        owners = updated(before, default(after), self.store.owners.get(request.key, {}), (_manager(request), "Update"))
        return self._keep(request, request.key, after, owners)

    def _apply(self, request: Request) -> tuple[Object, list[str]]:
        live, owners = self.store.get(request.key), self.store.owners.get(request.key, {})
        if "force" not in request.query or not (manager := request.query.get("fieldManager")):
            raise Refused(400, "BadRequest", "fieldManager and force are expected here")
        version = request.body["metadata"].get("resourceVersion")
        if live is not None and version not in (None, live["metadata"]["resourceVersion"]):
            message = f"Operation cannot be fulfilled on {request.name}: the object has been modified"
            raise Refused(409, "Conflict", message)
        namespace = {"namespace": request.namespace} if request.namespace else {}
        body = {**request.body, "metadata": {**request.body["metadata"], **namespace}}
        try:
            item, owners = applied(live, owners, manager, body, request.query["force"] == "true")
        except Conflict as conflict:
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{name}" using apps/v1',
                    "field": dotted(path),
                }
                for name, path in conflict.fields
            ]
            message = f"Apply failed with {len(causes)} conflicts"
            raise Refused(409, "Conflict", message, causes=causes) from None
        return self._keep(request, request.key, default(item), owners)

    def _keep(self, request: Request, key: Key, item: Object, owners: Owners) -> tuple[Object, list[str]]:
        if request.namespace and self.store.get(("namespaces", "", request.namespace)) is None:
            raise Refused(404, "NotFound", f'namespaces "{request.namespace}" not found')
        before = self.store.get(key)
        validate(item, before)
        warnings = admit(self.store, self.controllers.webhooks, item, request.namespace)
        if request.dry_run:
            return item, warnings
        item["metadata"]["managedFields"] = [_managed(manager, paths) for manager, paths in owners.items()]
        self.store.owners[key] = owners
        if before is not None and _apart(before) == _apart(item):
            return before, warnings
        return self.store.put(key, item), warnings

    def _evict(self, request: Request) -> Object:
        pod = self.there(request)
        if not self.controllers.allows_eviction(pod):
            message = "Cannot evict pod as it would violate the pod's disruption budget."
            cause = {"reason": "DisruptionBudget", "message": message}
            raise Refused(429, "TooManyRequests", message, {"Retry-After": "1"}, causes=[cause])
        self.controllers.remove_pod(pod)
        return {"kind": "Status", "status": "Success"}

    def there(self, request: Request) -> Object:
        item = self.store.get(request.key)
        if item is None:
            raise Refused(404, "NotFound", f'{request.plural} "{request.name}" not found')
        return item

    def _matches(self, request: Request, item: Object) -> bool:
        metadata = item["metadata"]
        return (
            metadata.get("namespace", "")
            in (request.namespace, *([] if request.namespace else [metadata.get("namespace")]))
            and _pairs(request, "labelSelector").items() <= metadata.get("labels", {}).items()
            and all(_field(item, name) == value for name, value in _pairs(request, "fieldSelector").items())
        )

    def _listen(self) -> None:
        if self.over.is_set():
            return
        self._server = self._serve(self.port)
        self.port = self._server.server_address[1]
        self.cut.clear()

    def _serve(self, port: int) -> ThreadingHTTPServer:
        handler = type("Handler", (Handler,), {"api": self})
        ThreadingHTTPServer.allow_reuse_address = True
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def _hang_up(self) -> None:
        self.cut.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _move(self) -> None:
        while not self.over.wait(STEP_S):
            with self.store.changed:
                for move in self.movers:
                    move()


def _verbs(request: Request) -> list[str]:
    if request.subresource == "portforward":
        return ["get", "create"]  # both, since 1.35
    if request.method == "GET" and not request.name:
        return ["watch" if request.query.get("watch") == "true" else "list"]
    return [{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]]


def _is_apply(request: Request) -> bool:
    return request.headers.get("Content-Type", "").startswith("application/apply-patch")


def _manager(request: Request) -> str:
    return request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").split("/")[0]


def _managed(manager: Manager, paths: set[Any]) -> Object:
    name, operation = manager
    return {"manager": name, "operation": operation, "fieldsV1": {"emulated": sorted(map(dotted, paths))}}


def _pairs(request: Request, selector: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in request.query.get(selector, "").replace("==", "=").split(",") if pair)


def _field(item: Object, dotted_name: str) -> Any:
    for part in dotted_name.split("."):
        item = item.get(part, {})
    return item


def _apart(item: Object) -> Object:
    """An object without its version."""
    kept = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
    return {**item, "metadata": kept}
