"""Rules for Kubernetes manifests that no schema knows: what must agree between objects, and with the server they run.

Each rule gives sentences about what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from cmt_pipeline.constants import RELEASE_VARIABLE
from cmt_rollout.kubernetes.gpu_rules import gpus_are_asked_for, plans_are_built_where_they_run, slices_exist
from cmt_rollout.kubernetes.layout import RELEASE, TRACK
from cmt_rollout.kubernetes.rendered import (
    Manifests,
    Object,
    least_replicas,
    option_of,
    quantity,
    scalers_of,
    selects,
)
from cmt_server.child import GROUP_TIMEOUT_S
from cmt_server.server import EXIT_TIMEOUT_S

Rule = Callable[[Manifests], Iterator[str]]

EXIT_SPARE_S = 5.0  # between the last of the server's own time-outs and the kernel's kill
MEMORY_VOLUME_SHARE = 0.5  # of a container's memory limit: engines and stages need the rest


def faults(objects: Sequence[Object]) -> list[str]:
    """What is wrong with these objects together; empty if nothing is."""
    manifests = Manifests(objects)
    return [fault for rule in RULES for fault in rule(manifests)]


def selectors_match(manifests: Manifests) -> Iterator[str]:
    """A Deployment owns its own pods and nobody else's."""
    for deployment in manifests.deployments:
        owned = [other.name for other in manifests.workloads if selects(deployment.spec["selector"], other.labels)]
        if owned != [deployment.name]:
            yield f"the selector of {deployment.name} selects the pods of {', '.join(owned) or 'nobody'}"
        for spread in deployment.pod.get("topologySpreadConstraints", ()):
            if not selects(spread["labelSelector"], deployment.labels):
                yield f"{deployment.name} is spread by {spread['topologyKey']} among pods that aren't its own"


def services_reach_pods(manifests: Manifests) -> Iterator[str]:
    """A Service selects the stable pods, not the canary's, and its ports are theirs."""
    for service in manifests.of("Service"):
        name = f"Service {service['metadata']['name']}"
        selector = {"matchLabels": service["spec"]["selector"]}
        chosen = [each for each in manifests.workloads if selects(selector, each.labels)]
        if not chosen:
            yield f"{name} selects no pods"
        for workload in chosen:
            if workload.labels.get(TRACK) == "canary":
                yield f"{name} sends requests to {workload.name} before it was judged"
            for port in service["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                if target not in workload.ports and target not in workload.ports.values():
                    yield f"{name} sends port {port['port']} to {target}, which {workload.name} hasn't"


def budgets_agree(manifests: Manifests) -> Iterator[str]:
    """A disruption budget covers one Deployment, lets a pod of it go, and never all of them."""
    for budget in manifests.of("PodDisruptionBudget"):
        name, spec = f"PodDisruptionBudget {budget['metadata']['name']}", budget["spec"]
        chosen = [each for each in manifests.deployments if selects(spec["selector"], each.labels)]
        if len(chosen) != 1:
            yield f"{name} covers {len(chosen)} Deployments; expected one"
            continue
        if ("minAvailable" in spec) == ("maxUnavailable" in spec):
            yield f"{name} has both or neither of minAvailable and maxUnavailable"
            continue
        replicas = least_replicas(manifests, chosen[0])
        may_go = spec["maxUnavailable"] if "maxUnavailable" in spec else replicas - spec["minAvailable"]
        if may_go < 1:
            yield f"{name} lets none of {replicas} pods go: nodes can't be drained"
        elif replicas > 1 and may_go >= replicas:
            yield f"{name} lets all {replicas} pods go at once"


def autoscalers_agree(manifests: Manifests) -> Iterator[str]:
    """One autoscaler for a Deployment, which then leaves its replicas to it."""
    for scaler in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        name, target = f"{scaler['kind']} {scaler['metadata']['name']}", scaler["spec"]["scaleTargetRef"]
        if manifests.named(target.get("kind", "Deployment"), target["name"]) is None:
            yield f"{name} scales {target['name']}, which isn't here"
        least = scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 1))
        most = scaler["spec"].get("maxReplicas", scaler["spec"].get("maxReplicaCount", 100))
        if not 2 <= least <= most:
            yield f"{name} keeps {least} to {most} pods; expected at least 2, so that one may go"
    for deployment in manifests.deployments:
        scalers = scalers_of(manifests, deployment)
        if len(scalers) > 1:
            yield f"{deployment.name} has {len(scalers)} autoscalers"
        if scalers and "replicas" in deployment.spec:
            yield f"{deployment.name} sets replicas, and its autoscaler does"


def canaries_wait(manifests: Manifests) -> Iterator[str]:
    """A canary has no pods until an upgrade gives it some."""
    for deployment in manifests.deployments:
        if deployment.labels.get(TRACK) == "canary" and (replicas := deployment.spec.get("replicas", 1)):
            yield f"{deployment.name} has {replicas} pods before anything is on trial"


def grace_adds_up(manifests: Manifests) -> Iterator[str]:
    """The kernel kills no pod that is still within the time that its command gives itself."""
    for deployment in manifests.deployments:
        for container in deployment.pod["containers"]:
            drain = option_of(container, "--drain-timeout-s")
            if drain is None:
                yield f"{deployment.name}: {container['name']} doesn't say --drain-timeout-s"
                continue
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if sleep < 1:
                yield f"{deployment.name}: {container['name']} drains before proxies know that it ends"
            needed = sleep + float(drain) + EXIT_SPARE_S
            if deployment in manifests.servers:
                needed += EXIT_TIMEOUT_S + GROUP_TIMEOUT_S
            grace = deployment.pod.get("terminationGracePeriodSeconds", 30)
            if grace < needed:
                yield f"{deployment.name} is killed after {grace} s; it may take {needed:g} s to end"


def probes_fit(manifests: Manifests) -> Iterator[str]:
    """Probes ask ports that the container has, and the rollout waits as long as a start may take."""
    for deployment in manifests.deployments:
        for container in deployment.pod["containers"]:
            ports = {p["name"] for p in container.get("ports", ())} | {
                p["containerPort"] for p in container.get("ports", ())
            }
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(kind, {}).get("httpGet", {}).get("port")
                if port not in ports:
                    yield f"{deployment.name}: {kind} of {container['name']} asks port {port}, which it hasn't"
            startup = container.get("startupProbe", {})
            longest = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
            if deployment.spec.get("progressDeadlineSeconds", 600) <= longest:
                yield f"{deployment.name} is given up before its start's {longest} s are over"


def reasons_are_kept(manifests: Manifests) -> Iterator[str]:
    """A container that ends says why where an upgrade can read it."""
    for deployment in manifests.deployments:
        for container in deployment.containers:
            if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
                yield (
                    f"{deployment.name}: nobody learns why {container['name']} ended; set terminationMessagePolicy to "
                    "FallbackToLogsOnError"
                )


def ports_are_served(manifests: Manifests) -> Iterator[str]:
    """The command line opens the ports that the container names."""
    for deployment in manifests.deployments:
        for container in deployment.pod["containers"]:
            for port in container.get("ports", ()):
                opened = option_of(container, f"--{port['name']}-port") or option_of(container, "--port")
                if opened != str(port["containerPort"]):
                    yield (
                        f"{deployment.name}: {container['name']} names port {port['containerPort']} {port['name']}, "
                        f"its command line opens {opened}"
                    )


def variables_are_defined(manifests: Manifests) -> Iterator[str]:
    """Every $(NAME) is set, every ConfigMap named is here with its key, every Secret is optional or here."""
    for workload in manifests.workloads:
        for container in workload.containers:
            where = f"{workload.name}: {container['name']}"
            known = {variable["name"] for variable in container.get("env", ())}
            words = " ".join([*container.get("command", ()), *container.get("args", ())])
            for name in sorted(set(re.findall(r"(?<!\$)\$\((\w+)\)", words)) - known):
                yield f"{where} uses $({name}), which isn't set"
            for variable in container.get("env", ()):
                source = variable.get("valueFrom", {}).get("configMapKeyRef")
                found = manifests.named("ConfigMap", source["name"]) if source else None
                if source and found is not None and source["key"] not in found["data"]:
                    yield f"{where} takes {source['key']} from ConfigMap {source['name']}, which hasn't it"
                if source and found is None and workload in manifests.deployments:
                    yield f"{where} takes {source['key']} from ConfigMap {source['name']}, which isn't here"
            for source in container.get("envFrom", ()):
                secret = source.get("secretRef", {})
                if secret and not secret.get("optional") and manifests.named("Secret", secret["name"]) is None:
                    yield f"{where} needs Secret {secret['name']}, which isn't here"


def releases_agree(manifests: Manifests) -> Iterator[str]:
    """What is pulled is what is served is what the pod's label says."""
    for deployment in manifests.servers:
        values = {
            f"{container['name']}: {variable.get('value')}"
            for container in deployment.containers
            for variable in container.get("env", ())
            if variable["name"] == RELEASE_VARIABLE
        }
        label = deployment.labels.get(RELEASE)
        if len(values) < len(deployment.containers) or any(each.rpartition(": ")[2] != label for each in values):
            yield f"{deployment.name} is labelled release {label}; {RELEASE_VARIABLE} is {', '.join(sorted(values))}"


def resources_are_said(manifests: Manifests) -> Iterator[str]:
    """Every container says what it needs, and at most."""
    for workload in manifests.workloads:
        for container in workload.containers:
            requests, limits = (container.get("resources", {}).get(of, {}) for of in ("requests", "limits"))
            for name in ("cpu", "memory", "ephemeral-storage"):
                if name not in requests or name not in limits:
                    yield f"{workload.name}: {container['name']} has no request or no limit of {name}"
                elif quantity(requests[name]) > quantity(limits[name]):
                    yield f"{workload.name}: {container['name']} requests more {name} than its limit"


def memory_volumes_fit(manifests: Manifests) -> Iterator[str]:
    """Memory-backed volumes are bounded, and small beside the limit that they count against."""
    for workload in manifests.workloads:
        sizes = {
            volume["name"]: quantity(volume["emptyDir"].get("sizeLimit", "1000Ti"))
            for volume in workload.pod.get("volumes", ())
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        }
        for container in workload.pod["containers"]:
            used = sum(sizes.get(mount["name"], 0) for mount in container.get("volumeMounts", ()))
            limit = quantity(container.get("resources", {}).get("limits", {}).get("memory", 0))
            if used > MEMORY_VOLUME_SHARE * limit:
                yield f"{workload.name}: memory volumes of {used:.3g} B in {container['name']}'s limit of {limit:.3g} B"
    for deployment in manifests.servers:
        mounts = {m["mountPath"] for c in deployment.pod["containers"] for m in c.get("volumeMounts", ())}
        if "/dev/shm" not in mounts:  # noqa: S108
            yield f"{deployment.name} has no volume at /dev/shm"


def volumes_are_there(manifests: Manifests) -> Iterator[str]:
    """Every mount has its volume, every claim is here, and what a command writes lies on a volume."""
    for workload in manifests.workloads:
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", ())}
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and manifests.named("PersistentVolumeClaim", claim) is None:
                yield f"{workload.name} mounts claim {claim}, which isn't here"
        for container in workload.containers:
            mounts = {m["mountPath"]: m for m in container.get("volumeMounts", ())}
            for mount in mounts.values():
                if mount["name"] not in volumes:
                    yield f"{workload.name}: {container['name']} mounts {mount['name']}, which is no volume"
            written = {"/tmp", option_of(container, "--state") or "/tmp"}  # noqa: S108
            for path in sorted(path for path in written if path not in mounts or mounts[path].get("readOnly")):
                yield f"{workload.name}: {container['name']} writes to {path}, which is no volume"


def images_are_pinned(manifests: Manifests) -> Iterator[str]:
    for workload in manifests.workloads:
        for container in workload.containers:
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in container["image"] and tag in ("", "latest"):
                yield f"{workload.name}: {container['name']} runs {container['image']}; name a version"


def pods_are_locked(manifests: Manifests) -> Iterator[str]:
    """What Kubernetes calls restricted, with a read-only root and no token of the API."""
    for workload in manifests.workloads:
        pod = workload.pod.get("securityContext", {})
        if not (pod.get("runAsNonRoot") and pod.get("runAsUser", 0) >= 10_000):
            yield f"{workload.name} may run as root, or as a user of the node"
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{workload.name} has no seccomp profile"
        if workload.pod.get("automountServiceAccountToken") is not False:
            yield f"{workload.name} gets a token of the Kubernetes API"
        for container in workload.containers:
            locked = container.get("securityContext", {})
            if (
                locked.get("allowPrivilegeEscalation") is not False
                or locked.get("readOnlyRootFilesystem") is not True
                or locked.get("capabilities", {}).get("drop") != ["ALL"]
            ):
                yield f"{workload.name}: {container['name']} isn't locked down"


def policies_name_ports(manifests: Manifests) -> Iterator[str]:
    """A network policy's named ports are those of the pods that it lets in to; else it opens nothing."""
    for policy in manifests.of("NetworkPolicy"):
        for deployment in manifests.deployments:
            if not selects(policy["spec"]["podSelector"], deployment.labels):
                continue
            ports = [port["port"] for rule in policy["spec"].get("ingress", ()) for port in rule.get("ports", ())]
            for port in ports:
                if port not in deployment.ports and port not in deployment.ports.values():
                    yield f"NetworkPolicy {policy['metadata']['name']} opens {port}, which {deployment.name} hasn't"


def monitors_reach_pods(manifests: Manifests) -> Iterator[str]:
    for monitor in manifests.of("PodMonitor"):
        chosen = [each for each in manifests.deployments if selects(monitor["spec"]["selector"], each.labels)]
        if not chosen:
            yield f"PodMonitor {monitor['metadata']['name']} selects no pods"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for deployment in chosen:
                if endpoint["port"] not in deployment.ports:
                    yield f"PodMonitor asks port {endpoint['port']}, which {deployment.name} hasn't"


RULES: tuple[Rule, ...] = (
    selectors_match,
    services_reach_pods,
    budgets_agree,
    autoscalers_agree,
    canaries_wait,
    grace_adds_up,
    probes_fit,
    reasons_are_kept,
    ports_are_served,
    variables_are_defined,
    releases_agree,
    resources_are_said,
    memory_volumes_fit,
    volumes_are_there,
    images_are_pinned,
    pods_are_locked,
    policies_name_ports,
    monitors_reach_pods,
    gpus_are_asked_for,
    slices_exist,
    plans_are_built_where_they_run,
)
