"""What is refused although its author has the right to write it, and what is warned of.

Resource quotas (plugin ResourceQuota: of `pods` and of requests and limits), pod security by the namespace's labels
(plugin PodSecurity, the level restricted: pods are refused, what makes pods is warned of), webhooks, and the two rules
of validation that server-side apply meets here. Messages are worded as the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from emulated_api.requests import Refused
from emulated_api.store import Object, Store

#: Of an object that is to be stored: why not; "" where it may be.
Webhook = Callable[[Object], str]

LEVELS = "pod-security.kubernetes.io"
UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "k": 1e3, "M": 1e6, "G": 1e9}


def validate(item: Object, before: Object | None) -> None:
    """Refused as invalid."""
    if item["kind"] != "Deployment":
        return
    for kind in ("containers", "initContainers"):
        for place, container in enumerate(item["spec"]["template"]["spec"].get(kind, ())):
            if "image" not in container:
                raise Refused(422, "Invalid", f"spec.template.spec.{kind}[{place}].image: Required value")
    if before is not None and before["spec"]["selector"] != item["spec"]["selector"]:
        raise Refused(422, "Invalid", "spec.selector: Invalid value: field is immutable")


def admit(store: Store, webhooks: dict[str, Webhook], item: Object, namespace: str) -> list[str]:
    """Warnings about an object. Refused where it may not be stored."""
    for name, webhook in webhooks.items():
        if why := webhook(item):
            raise Refused(400, "BadRequest", f'admission webhook "{name}" denied the request: {why}')
    labels = (store.get(("namespaces", "", namespace)) or {"metadata": {}})["metadata"].get("labels", {})
    if item["kind"] == "Pod":
        if labels.get(f"{LEVELS}/enforce") == "restricted" and (found := "; ".join(violations(item["spec"]))):
            _forbid(item, f'violates PodSecurity "restricted:latest": {found}')
        _within_quota(store, item, namespace)
        return []
    template = item.get("spec", {}).get("template", {}).get("spec") if isinstance(item.get("spec"), dict) else None
    if template and labels.get(f"{LEVELS}/warn") == "restricted" and (found := ", ".join(violations(template))):
        return [f'would violate PodSecurity "restricted:latest": {found}']
    return []


def violations(spec: Object) -> list[str]:
    """Of the level restricted, as k8s.io/pod-security-admission/policy words them."""
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    pod = spec.get("securityContext", {})
    checks: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
        (
            "allowPrivilegeEscalation != false",
            "securityContext.allowPrivilegeEscalation=false",
            lambda own: own.get("allowPrivilegeEscalation") is not False,
        ),
        (
            "unrestricted capabilities",
            'securityContext.capabilities.drop=["ALL"]',
            lambda own: "ALL" not in own.get("capabilities", {}).get("drop", ()),
        ),
        (
            "runAsNonRoot != true",
            "securityContext.runAsNonRoot=true",
            lambda own: not own.get("runAsNonRoot", pod.get("runAsNonRoot")),
        ),
        (
            "seccompProfile",
            'securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"',
            lambda own: not own.get("seccompProfile", pod.get("seccompProfile")),
        ),
    )
    found = []
    for rule, expected, broken in checks:
        if names := [c["name"] for c in containers if broken(c.get("securityContext", {}))]:
            quoted = ", ".join(f'"{name}"' for name in names)
            found.append(f"{rule} (container{'s' if len(names) > 1 else ''} {quoted} must set {expected})")
    return found


def _within_quota(store: Store, pod: Object, namespace: str) -> None:
    alive = [
        other["spec"]
        for other in store.items("pods")
        if other["metadata"]["namespace"] == namespace and other["status"].get("phase") not in ("Failed", "Succeeded")
    ]
    for quota in store.items("resourcequotas"):
        if quota["metadata"]["namespace"] != namespace:
            continue
        for resource, limit in quota["spec"]["hard"].items():
            asked = _amount(pod["spec"], resource)
            used = sum(_amount(spec, resource) for spec in alive)
            if used + asked > _number(limit):
                _forbid(
                    pod,
                    f"exceeded quota: {quota['metadata']['name']}, requested: {resource}={asked:g}, "
                    f"used: {resource}={used:g}, limited: {resource}={limit}",
                )


def _amount(spec: Object, resource: str) -> float:
    """What a pod takes of a quota's resource: itself, or what its containers request or are limited to."""
    if resource == "pods":
        return 1.0
    kind, _, name = resource.rpartition(".")

    def of(containers: str) -> Iterator[float]:
        for container in spec.get(containers, ()):
            yield _number(container.get("resources", {}).get(kind or "requests", {}).get(name, 0))

    return max(sum(of("containers")), max(of("initContainers"), default=0.0))


def _number(quantity: str | int) -> float:
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert match, quantity
    return float(match[1]) * UNITS[match[2]]


def _forbid(pod: Object, why: str) -> None:
    raise Refused(403, "Forbidden", f'pods "{pod["metadata"]["name"]}" is forbidden: {why}')
