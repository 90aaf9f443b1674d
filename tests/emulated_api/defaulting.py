"""What the API server fills in where an object says nothing, of the fields that this project's objects have.

As k8s.io/kubernetes/pkg/apis/{core,apps,autoscaling}/v1*/defaults.go. A default is nobody's field: it comes back
whenever its last owner leaves it out of what it applies, which is how a Deployment of six pods becomes one of one.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
POD = {
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
    "securityContext": {},
}
CONTAINER = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "resources": {},
}
DEPLOYMENT = {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}
ROLLING = {"maxSurge": "25%", "maxUnavailable": "25%"}
SERVICE = {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}


def default(item: Object) -> Object:
    """The same object, its gaps filled."""
    spec = item.get("spec", {})
    if item["kind"] == "Deployment":
        _fill(spec, DEPLOYMENT)
        strategy = spec.setdefault("strategy", {})
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            _fill(strategy.setdefault("rollingUpdate", {}), ROLLING)
        _default_pod(spec["template"].setdefault("spec", {}))
    elif item["kind"] == "Service":
        _fill(spec, SERVICE)
        for port in spec.get("ports", ()):
            _fill(port, {"protocol": "TCP", "targetPort": port["port"]})
    elif item["kind"] == "HorizontalPodAutoscaler":
        _fill(spec, {"minReplicas": 1})
    return item


def _default_pod(spec: Object) -> None:
    _fill(spec, POD)
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        _fill(container, CONTAINER)
        tag = container.get("image", "").rpartition("/")[2].partition(":")[2]
        _fill(container, {"imagePullPolicy": "Always" if tag in ("", "latest") else "IfNotPresent"})
        for port in container.get("ports", ()):
            _fill(port, {"protocol": "TCP"})
        for probe in (container[name] for name in PROBES if name in container):
            _fill(probe, PROBE)


def _fill(item: Object, defaults: Object) -> None:
    for key, value in defaults.items():
        item.setdefault(key, dict(value) if isinstance(value, dict) else value)
