"""Kubernetes manifests as `kubectl kustomize` renders them, parsed, and questions that rules ask of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cmt_rollout.kubernetes.layout import TRACK

#: One object of the Kubernetes API, which nobody here changes.
Object = Mapping[str, Any]
Labels = Mapping[str, str]

UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Workload:
    """A Deployment or a Job, with its pods' template."""

    object: Object

    @property
    def name(self) -> str:
        return f"{self.object['kind']} {self.object['metadata']['name']}"

    @property
    def spec(self) -> Object:
        spec: Object = self.object["spec"]
        return spec

    @property
    def labels(self) -> Labels:
        labels: Labels = self.spec["template"]["metadata"]["labels"]
        return labels

    @property
    def pod(self) -> Object:
        pod: Object = self.spec["template"]["spec"]
        return pod

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        return {p["name"]: p["containerPort"] for c in self.pod["containers"] for p in c.get("ports", ())}


@dataclass(frozen=True)
class Manifests:
    """All objects that are applied together."""

    objects: Sequence[Object]

    def of(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    @cached_property
    def workloads(self) -> list[Workload]:
        return [Workload(each) for each in self.of("Deployment", "Job")]

    @cached_property
    def deployments(self) -> list[Workload]:
        return [Workload(each) for each in self.of("Deployment")]

    @cached_property
    def servers(self) -> list[Workload]:
        """Deployments of Triton: those whose pods are labelled with a track."""
        return [each for each in self.deployments if TRACK in each.labels]


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number: 250m is 0.25, 1Ki is 1024."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if match is None or match[2] not in UNITS:
        raise ValueError(f"got {text!r}; expected a number with a unit of {', '.join(filter(None, UNITS))}")
    return float(match[1]) * UNITS[match[2]]


def selects(selector: Object, labels: Labels) -> bool:
    """A label selector with matchLabels and matchExpressions; an empty one selects everything."""
    for expression in selector.get("matchExpressions", ()):
        inside = labels.get(expression["key"]) in expression.get("values", labels.values())
        if inside != (expression["operator"] in ("In", "Exists")):
            return False
    return dict(selector.get("matchLabels", {})).items() <= labels.items()


def option_of(container: Object, name: str) -> str | None:
    """What an option of the command line is set to, as `--name=value` or `--name value`."""
    words = [*container.get("command", ()), *container.get("args", ())]
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word.startswith(f"{name}="):
            return str(word.partition("=")[2])
        if word == name:
            return None if following is None else str(following)
    return None


def least_replicas(manifests: Manifests, deployment: Workload) -> int:
    """How few pods it may have: its autoscaler's minimum, else what it asks for."""
    for scaler in scalers_of(manifests, deployment):
        return int(scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 1)))
    return int(deployment.spec.get("replicas", 1))


def scalers_of(manifests: Manifests, deployment: Workload) -> list[Object]:
    """The autoscalers that change its replicas."""
    name = deployment.object["metadata"]["name"]
    scalers = manifests.of("HorizontalPodAutoscaler", "ScaledObject")
    return [each for each in scalers if each["spec"]["scaleTargetRef"]["name"] == name]
