"""Cluster: a namespace of a Kubernetes cluster, through the official client; its objects are plain JSON.

An API server may be away for a while (a restart, a lost connection) or busy (429, with Retry-After): it is asked again
until `patience_s` is over. One that has just started may listen before it has read the Roles, or the tokens' accounts:
what it denies counts once it has denied it for RIGHTS_S. Whatever else it refuses is a ClusterError with its own words.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tenacity
import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from cmt_rollout.errors import ApplyConflict, ClusterError
from cmt_rollout.kubernetes.layout import NAMESPACE, Object

PATIENCE_S = 60.0
RIGHTS_S = 2.0
CONNECT_S, ANSWER_S = 5.0, 30.0
BACKOFF = tenacity.wait_exponential(multiplier=0.1, max=5.0) + tenacity.wait_random(0.0, 0.1)
#: Too many requests, or the server is starting, stopping or out of reach behind its proxy.
PASSING = frozenset({429, 500, 502, 503, 504})
#: Field managers of `kubectl apply`, and of `kubectl apply --server-side`.
KUBECTL_APPLY = ("kubectl-client-side-apply", "kubectl")
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"

Query = Sequence[tuple[str, Any]]


class Cluster:
    """One namespace. path(plural, name) and the like give paths on the API server; nothing is cached but kinds."""

    def __init__(self, api: client.ApiClient, namespace: str, name: str, patience_s: float = PATIENCE_S) -> None:
        self.api, self.namespace, self.name = api, namespace, name
        # Its discovery would read the whole API and leave a file behind; kinds are looked up one by one here.
        self._client = DynamicClient(api, discoverer=lambda *_: None)
        self._patience_s = patience_s
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}
        self._warnings: list[str] = []

    def path(self, plural: str, name: str = "", group: str = "", subresource: str = "") -> str:
        """Of objects in this namespace; group: as in `apps/v1`, none for the core's."""
        root = f"/apis/{group}" if group else "/api/v1"
        parts = [root, "namespaces", self.namespace, plural, name, subresource]
        return "/".join(part for part in parts if part)

    def path_of(self, item: Object) -> str:
        """Of any object, by its kind. ClusterError where the cluster doesn't know it."""
        version, kind = item["apiVersion"], item["kind"]
        plural, namespaced = self._kind(version, kind)
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        place = f"/namespaces/{item['metadata'].get('namespace', self.namespace)}" if namespaced else ""
        return f"{root}{place}/{plural}/{item['metadata']['name']}"

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Query = (),
        kind: str = "",
        within_s: float | None = None,
        rights_s: float = RIGHTS_S,
    ) -> Object:
        """An answer's JSON. kind: of the body, application/json by default; within_s: nothing is sent later than that;
        rights_s: how long the answer that one has no right to it is doubted.

        Raises ClusterError.
        """
        response = self._patiently(method, path, body, query, kind, (CONNECT_S, ANSWER_S), within_s, rights_s)
        self._warnings += map(_warning, response.headers.getlist("Warning"))
        answer: Object = json.loads(response.data)
        return answer

    def text(self, path: str, query: Query = ()) -> str:
        """An answer that isn't JSON, such as a log. Raises ClusterError."""
        answer = self._patiently("GET", path, None, query, "", (CONNECT_S, ANSWER_S))
        return bytes(answer.data).decode(errors="replace")

    def take_warnings(self) -> list[str]:
        """What the API server has warned of since this was last asked, each once."""
        taken, self._warnings = list(dict.fromkeys(self._warnings)), []
        return taken

    def find(self, path: str) -> Object | None:
        """The object at a path; None where there is none."""
        try:
            return self.request("GET", path)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def look(self, plural: str, group: str = "", query: Query = ()) -> list[Object]:
        """The objects of a kind that may be looked at here; none where that isn't allowed, or isn't known."""
        try:
            listed = self.request("GET", self.path(plural, group=group), query=query, rights_s=0)
        except ClusterError as error:
            if error.status not in (403, 404):
                raise
            return []
        kind = listed.get("kind", "List").removesuffix("List")
        return [{"kind": kind, **item} for item in listed["items"]]  # a list's items don't say their kind

    def apply(
        self,
        path: str,
        item: Object,
        manager: str,
        *,
        dry_run: bool = False,
        force_conflicts: bool = False,
        within_s: float | None = None,
    ) -> Object:
        """Server-side apply: these fields, and no others, are the manager's. Raises ApplyConflict.

        An item that names a resourceVersion is applied to that state of the object alone; ClusterError 409 otherwise.
        """
        query: list[tuple[str, Any]] = [("fieldManager", manager), ("force", str(force_conflicts).lower())]
        if dry_run:
            query.append(("dryRun", "All"))
        return self.request("PATCH", path, item, query, APPLY, within_s)

    def follow(self, collection: str, name: str, tick_s: int) -> Iterator[Object]:
        """An object as it is now, then whenever it changes, and every tick_s seconds at the latest; without end."""
        query = [("fieldSelector", f"metadata.name={name}")]
        while True:
            listed = self.request("GET", collection, query=query)
            if not listed["items"]:
                raise ClusterError(f"{collection}/{name} is gone", 404)
            current, version = listed["items"][0], listed["metadata"]["resourceVersion"]
            yield current
            while version:
                for event, item in self._events(collection, [*query, ("resourceVersion", version)], tick_s):
                    version = item.get("metadata", {}).get("resourceVersion", "")
                    if event in ("DELETED", "ERROR"):
                        version = ""  # too old a version, or the object is gone: listing it again tells
                        break
                    if event != "BOOKMARK":
                        current = item
                        yield current
                yield current

    def _events(self, collection: str, query: Query, tick_s: int) -> Iterator[tuple[str, Object]]:
        """What a watch says until it ends: the server ends it after tick_s, or a connection is lost."""
        watch_query = [*query, ("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", tick_s)]
        try:
            stream = self._patiently("GET", collection, None, watch_query, "", (CONNECT_S, tick_s + ANSWER_S))
        except ClusterError as error:
            if error.status != 410:
                raise
            yield "ERROR", {}
            return
        try:
            for line in stream:
                event = json.loads(line)
                yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError):  # cut off, maybe within a line
            return
        finally:
            stream.close()

    def _kind(self, version: str, kind: str) -> tuple[str, bool]:
        if (version, kind) not in self._kinds:
            root = f"/apis/{version}" if "/" in version else f"/api/{version}"
            known = (self.find(root) or {}).get("resources", [])
            found = [r for r in known if r["kind"] == kind and "/" not in r["name"]]
            if not found:
                raise ClusterError(
                    f"this cluster doesn't know {kind} of {version}: install what brings it, or leave it out", 404
                )
            self._kinds[version, kind] = found[0]["name"], found[0]["namespaced"]
        return self._kinds[version, kind]

    def _patiently(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: Query,
        kind: str,
        timeout: tuple[float, float],
        within_s: float | None = None,
        rights_s: float = RIGHTS_S,
    ) -> Any:
        patience_s = min(self._patience_s, math.inf if within_s is None else within_s)
        conditional = "resourceVersion" in (body or {}).get("metadata", {})
        again = tenacity.Retrying(
            retry=_Again(method == "PATCH" and not conditional, rights_s),
            stop=tenacity.stop_before_delay(patience_s),
            wait=_pause,
            reraise=True,
        )
        try:
            return again(
                self._send,
                method,
                path,
                body=body,
                query_params=list(query),
                content_type=kind or "application/json",
                serialize=False,
                _request_timeout=(min(timeout[0], patience_s), min(timeout[1], patience_s)) if within_s else timeout,
            )
        except ApiException as error:
            raise _ours(error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(f"no answer from the API server of {self.name} for {patience_s:g} s: {error}") from error

    def _send(self, method: str, path: str, **request: Any) -> Any:
        """Of a watch, an answer begun; else one that has come whole."""
        response = self._client.request(method, path, **request)
        if ("watch", "true") not in request["query_params"]:
            response.data  # noqa: B018  # read from the connection here, where a lost one is asked again
        return response


def connect(
    context: str | None = None,
    namespace: str | None = None,
    kubeconfig: Path | None = None,
    patience_s: float = PATIENCE_S,
) -> Cluster:
    """The cluster of a kubeconfig's context; within a pod, with neither given, its own. Raises ClusterError."""
    configuration = client.Configuration()
    configuration.retries = False  # ours know what may be asked again, and when
    inside = kubeconfig is None and context is None and in_cluster()
    try:
        if inside:
            config.load_incluster_config(client_configuration=configuration)
        else:
            file = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG")  # the client looks when imported
            config.load_kube_config(file, context=context, client_configuration=configuration)
    except config.ConfigException as error:
        raise ClusterError(f"no cluster to go to: {error}; name one with --context, or set KUBECONFIG") from error
    name = context or ("this cluster" if inside else configuration.host)
    return Cluster(client.ApiClient(configuration), namespace or NAMESPACE, name, patience_s)


def in_cluster() -> bool:
    """Whether this process runs in a pod and nothing names another cluster."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ


def _warning(header: str) -> str:
    """The text of a Warning header (RFC 7234): 299 - "text"."""
    quoted = re.fullmatch(r'\d{3} \S+ "(.*)"', header)
    return re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else header


class _Again:
    """Whether the same request may succeed a little later. mergeable: it applies to any state of the object."""

    def __init__(self, mergeable: bool, rights_s: float) -> None:
        self._mergeable, self._rights_s = mergeable, rights_s
        self._denied_s: float | None = None

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if error is None:
            return False
        if isinstance(error, ApiException) and _is_denied(error):
            self._denied_s = time.monotonic() if self._denied_s is None else self._denied_s
            return time.monotonic() - self._denied_s < self._rights_s
        return _passes(self._mergeable, error)


def _is_denied(error: ApiException) -> bool:
    """Whether the API server knows no right to it, or not who asks; admission refuses with 403 too, for good."""
    return error.status == 401 or (
        error.status == 403 and bool(re.search(r'is forbidden: User ".*" cannot ', _status(error).get("message", "")))
    )


def _passes(mergeable: bool, error: BaseException) -> bool:
    if isinstance(error, ApiException):
        kube_status = _status(error)
        conflict = error.status == 409 and kube_status.get("reason") == "Conflict" and not _causes(kube_status)
        # A patch that met another change applies to the new state as well; a replacement must be made anew from it.
        return error.status in PASSING or (conflict and mergeable)
    return isinstance(error, (urllib3.exceptions.HTTPError, OSError))


def _pause(state: tenacity.RetryCallState) -> float:
    """What the server asks for, else longer and longer."""
    error = state.outcome.exception() if state.outcome else None
    retry_after = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(retry_after) if retry_after.isdigit() else BACKOFF(state)


def _ours(error: ApiException) -> ClusterError:
    kube_status = _status(error)
    message = kube_status.get("message") or f"{error.status} {error.reason}"
    if causes := _causes(kube_status):
        managers = tuple(dict.fromkeys(cause["message"].split('"')[1] for cause in causes))
        fields = ", ".join(cause.get("field", "?") for cause in causes)
        by_kubectl = any(manager in KUBECTL_APPLY for manager in managers)
        hint = "; they were applied with kubectl: use `cmt deploy` from now on, or it sets them back" * by_kubectl
        return ApplyConflict(
            f"{' and '.join(managers)} set{'s' if len(managers) == 1 else ''} {fields}; let that be undone, or take "
            f"the fields over with --force-conflicts{hint}",
            managers,
        )
    return ClusterError(message, error.status)


def _status(error: ApiException) -> Object:
    try:
        kube_status = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return kube_status if isinstance(kube_status, dict) else {}


def _causes(kube_status: Object) -> list[Object]:
    causes = (kube_status.get("details") or {}).get("causes") or []
    return [cause for cause in causes if cause.get("reason") == "FieldManagerConflict" and '"' in cause["message"]]
