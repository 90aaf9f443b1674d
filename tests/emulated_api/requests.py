"""Requests to the emulated API server, taken apart, and what it knows of kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from emulated_api.store import Key, Object

#: group/version -> plural -> (kind, namespaced)
KINDS: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {
        "namespaces": ("Namespace", False),
        "pods": ("Pod", True),
        "services": ("Service", True),
        "configmaps": ("ConfigMap", True),
        "secrets": ("Secret", True),
        "serviceaccounts": ("ServiceAccount", True),
        "persistentvolumes": ("PersistentVolume", False),
        "persistentvolumeclaims": ("PersistentVolumeClaim", True),
        "events": ("Event", True),
        "resourcequotas": ("ResourceQuota", True),
    },
    "apps/v1": {"deployments": ("Deployment", True), "replicasets": ("ReplicaSet", True)},
    "batch/v1": {"jobs": ("Job", True)},
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
    "coordination.k8s.io/v1": {"leases": ("Lease", True)},
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", True)},
    "autoscaling/v2": {"horizontalpodautoscalers": ("HorizontalPodAutoscaler", True)},
    "rbac.authorization.k8s.io/v1": {"roles": ("Role", True), "rolebindings": ("RoleBinding", True)},
}
#: What extensions bring: kinds of `EmulatedApi.install`.
EXTENSIONS: dict[str, dict[str, tuple[str, bool]]] = {
    "keda.sh/v1alpha1": {"scaledobjects": ("ScaledObject", True)},
    "monitoring.coreos.com/v1": {
        "podmonitors": ("PodMonitor", True),
        "prometheusrules": ("PrometheusRule", True),
    },
    "gateway.networking.k8s.io/v1": {"grpcroutes": ("GRPCRoute", True), "httproutes": ("HTTPRoute", True)},
}
Kinds = dict[str, dict[str, tuple[str, bool]]]


class Refused(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None, **details: Any):
        super().__init__(message)
        self.code, self.headers = code, headers or {}
        self.status = {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


@dataclass(frozen=True)
class Request:
    """A request, taken apart. name and subresource are "" where the path has none."""

    method: str
    version: str
    plural: str
    namespace: str
    name: str
    subresource: str
    query: dict[str, str]
    body: Any
    headers: Any

    @property
    def key(self) -> Key:
        return self.plural, self.namespace, self.name

    @property
    def dry_run(self) -> bool:
        return self.query.get("dryRun") == "All"


def taken_apart(method: str, url: str, body: Any, headers: Any, kinds: Kinds) -> Request:
    parts = urlsplit(url)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    root, *rest = parts.path.strip("/").split("/")
    version = rest.pop(0) if root == "api" else "/".join((rest.pop(0), rest.pop(0)))
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "", "")[:3]
    if plural not in kinds.get(version, {}):
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    return Request(method, version, plural, namespace, name, subresource, query, body, headers)


def discovery(path: str, kinds: Kinds) -> Object | None:
    """What /api, /apis and the path of a group's version say; None for other paths."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": v, "version": v.rpartition("/")[2]} for v in kinds if "/" in v]
        groups = [
            {"name": v["groupVersion"].partition("/")[0], "versions": [v], "preferredVersion": v} for v in versions
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in kinds:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced, "verbs": verbs}
        for plural, (kind, namespaced) in kinds[version].items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
