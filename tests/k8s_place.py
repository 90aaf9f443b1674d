"""A namespace to try upgrades in: of the cluster that CMT_TEST_KUBECONFIG names, else of an emulated API server.

A control plane alone will do: where it has no nodes, pods' statuses are played. On nodes CMT_TEST_IMAGE names an image
that they can run and that does nothing, such as `pause`. CMT_TEST_SECOND_SERVER is the URL of another API server of the
same cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient

from cmt_client import EmotionClient, FakeTransport
from cmt_client.transport import Transport
from cmt_pipeline.release_info import ReleaseStamp
from cmt_release.release import Release
from cmt_rollout import rollout
from cmt_rollout.golden import Golden
from cmt_rollout.kubernetes.cluster import Cluster, connect
from cmt_rollout.kubernetes.deploy import DeployOptions, deploy
from cmt_rollout.kubernetes.layout import CANARY, STABLE, TRAFFIC, ClusterOptions, release_of
from cmt_rollout.kubernetes.pods import Pod, pods_of
from cmt_rollout.kubernetes.target import KubernetesTarget
from cmt_rollout.options import Event, Following, RolloutOptions
from emulated_api.kubelet import Kubelet
from emulated_api.rights import Rights
from emulated_api.server import EmulatedApi
from played_kubelet import SCHEDULER, PlayedKubelet
from rendering import KUBECTL
from small_releases import INFO

Object = dict[str, Any]

KUBECONFIG = os.environ.get("CMT_TEST_KUBECONFIG")
SECOND_SERVER = os.environ.get("CMT_TEST_SECOND_SERVER")
IMAGE = os.environ.get("CMT_TEST_IMAGE", "registry.k8s.io/pause:3.10")
ROLE = Path(__file__).parents[1] / "k8s" / "components" / "rollout-rbac" / "rbac.yaml"
REPLICAS = 2
QUICK = RolloutOptions(canary_s=0.01, watch_s=0.01, samples=7, max_slowdown=1e6, drain_s=60)
EMULATED = ClusterOptions(0.5, ready_timeout_s=10, fault_grace_s=0.2, lease_s=2, tick_s=1)
BARE = ClusterOptions(0.5, ready_timeout_s=60, fault_grace_s=3, lease_s=5, tick_s=1)
NODES = ClusterOptions(0.5, ready_timeout_s=180, fault_grace_s=20, lease_s=10, tick_s=5)
HAS_NODES = KUBECONFIG is not None and bool(
    connect(None, "", Path(KUBECONFIG)).request("GET", "/api/v1/nodes")["items"]
)
TIMING = EMULATED if KUBECONFIG is None else NODES if HAS_NODES else BARE


@dataclass
class PlayedConnector:
    """Pods answer as their label says they would. wrong: pods by name that answer from another release."""

    wrong: Callable[[Pod], bool] = lambda _: False
    asked: list[str] = field(default_factory=list)

    def transport(self, pod: Pod) -> Transport:
        self.asked.append(pod.name)
        return FakeTransport(
            ReleaseStamp.of(replace(INFO, release=int(pod.release) + 100 * self.wrong(pod)), "ab" * 32)
        )

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Place:
    """The namespace. emulation: None on a real cluster; kubelet: makes pods ready or fail, None where real nodes do."""

    cluster: Cluster
    kubeconfig: Path
    emulation: EmulatedApi | None
    kubelet: Kubelet | PlayedKubelet | None
    connector: PlayedConnector = field(default_factory=PlayedConnector)
    events: list[Event] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.cluster.namespace

    def deploy(self, items: list[Object] | None = None, timing: ClusterOptions = TIMING, **options: Any) -> None:
        deploy(self.cluster, items or manifests(self.namespace), DeployOptions(**options), timing, self.events.append)

    def target(self, timing: ClusterOptions = TIMING, say: Callable[[str], None] = lambda _: None) -> KubernetesTarget:
        return KubernetesTarget(self.cluster, self.connector, timing, say=say)

    def upgrade(
        self,
        release: Release,
        options: RolloutOptions = QUICK,
        timing: ClusterOptions = TIMING,
        at: Mapping[str, Callable[[], None]] | None = None,
    ) -> None:
        """at: what happens when a step starts."""

        def told(event: Event) -> None:
            self.events.append(event)
            if at and event.state == "started" and event.step in at:
                at[event.step]()

        report = Following(told)
        rollout.upgrade([self.target(timing, report.say)], release, options, report)

    def kubectl(self, *arguments: str) -> None:
        """The real one, as somebody by hand."""
        command = [str(KUBECTL), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        if self.emulation:
            command += ["--as=admin", f"--cache-dir={self.kubeconfig.parent / 'kubectl'}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def with_rights(self) -> Place:
        """The same, with the rights that a driver has: of the ServiceAccount of this repository, by its token."""
        if self.emulation:
            self.emulation.users["rollout"] = Rights(role_rules())
            kubeconfig = self.emulation.kubeconfig(self.kubeconfig)
            return replace(self, cluster=connect("rollout", self.namespace, kubeconfig, patience_s=5))
        for item in yaml.safe_load_all(ROLE.read_text()):
            item["metadata"]["namespace"] = self.namespace
            self.cluster.apply(self.cluster.path_of(item), item, "test")
        path = self.cluster.path("serviceaccounts", "cmt-rollout", subresource="token")
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
        token = self.cluster.request("POST", path, asked)["status"]["token"]
        driver = connect(None, self.namespace, self.kubeconfig)
        driver.api.configuration.api_key = {"BearerToken": f"Bearer {token}"}
        driver.api.configuration.refresh_api_key_hook = None  # would read the kubeconfig's own again
        driver.api.configuration.cert_file = driver.api.configuration.key_file = None
        return replace(self, cluster=Cluster(ApiClient(driver.api.configuration), self.namespace, driver.name))

    def rollback(self) -> None:
        rollout.rollback([self.target()], pytest.fail, self.events.append)

    def deployment(self, name: str = STABLE) -> Object:
        return self.cluster.request("GET", self.cluster.path("deployments", name, "apps/v1"))

    def live(self) -> int | None:
        return release_of(self.deployment())

    def pods(self, **labels: str) -> list[Pod]:
        return [
            pod
            for pod in pods_of(self.cluster, labels or {"app.kubernetes.io/name": STABLE})
            if not (pod.leaving or pod.over)
        ]

    def with_traffic(self) -> list[Pod]:
        """The pods that the Services select."""
        return [pod for pod in self.pods() if pod.labels.get(TRAFFIC) == "yes"]

    def settled(self, release: int) -> None:
        """Asserts that this release serves and nothing of another is left."""
        wait_until(lambda: len(self.pods()) == REPLICAS)
        assert self.live() == release
        assert {pod.release for pod in self.pods()} == {str(release)}
        assert self.deployment(CANARY)["spec"]["replicas"] == 0
        assert len(self.with_traffic()) == REPLICAS

    def said(self, step: str, state: str = "passed") -> str:
        return next(e.detail for e in reversed(self.events) if (e.step, e.state) == (step, state))


@contextmanager
def place_of(folder: Path) -> Iterator[Place]:
    if KUBECONFIG is None:
        with EmulatedApi() as emulation:
            kubeconfig = emulation.kubeconfig(folder / "kubeconfig")
            yield Place(connect(None, "cmt", kubeconfig, patience_s=5), kubeconfig, emulation, emulation.kubelet)
        return
    cluster = connect(None, f"cmt-test-{secrets.token_hex(4)}", Path(KUBECONFIG))
    try:
        if HAS_NODES:
            yield Place(cluster, Path(KUBECONFIG), None, None)
            return
        with PlayedKubelet(connect(None, cluster.namespace, Path(KUBECONFIG))) as kubelet:
            yield Place(cluster, Path(KUBECONFIG), None, kubelet)
    finally:
        path = f"/api/v1/namespaces/{cluster.namespace}"
        if cluster.find(path) is not None:
            cluster.request("DELETE", path)


def role_rules() -> list[Object]:
    """Of the Role that drivers have."""
    role = next(item for item in yaml.safe_load_all(ROLE.read_text()) if item["kind"] == "Role")
    found: list[Object] = role["rules"]
    return found


def played_golden(client: EmotionClient, golden: Golden) -> list[str]:
    came = client.predict(text="Well.").release
    return [] if came == golden.number else [f"text: release {came} answered"]


def wait_until(condition: Callable[[], bool], seconds: float = TIMING.ready_timeout_s) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't come about"
        time.sleep(0.05)


def manifests(namespace: str, image: str = IMAGE, replicas: int = REPLICAS) -> list[Object]:
    """What `k8s/base` and the canary component come down to, for pods that do nothing."""
    names = {"app.kubernetes.io/name": STABLE}
    everything: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": STABLE},
            "spec": {"selector": {**names, TRAFFIC: "yes"}, "ports": [{"name": "grpc", "port": 8001}]},
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": STABLE},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {**names, "cmt/track": "stable"}}},
        },
        _deployment(STABLE, {**names, "cmt/track": "stable"}, {TRAFFIC: "yes"}, image, replicas),
        _deployment(CANARY, {**names, "cmt/track": "canary"}, {}, image, 0),
    ]
    for item in everything[1:]:
        item["metadata"]["namespace"] = namespace
    return everything


def placed(items: list[Object], namespace: str) -> list[Object]:
    """Rendered manifests in another namespace, whose pods are played and count as soon as they are ready."""
    text = json.dumps(items).replace('"namespace": "cmt"', f'"namespace": "{namespace}"')
    found: list[Object] = json.loads(text)
    for item in found:
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = namespace
        if item["kind"] == "Deployment":
            item["spec"]["minReadySeconds"] = 0
            item["spec"]["template"]["spec"]["schedulerName"] = SCHEDULER
    return found


def _deployment(name: str, labels: dict[str, str], more: dict[str, str], image: str, replicas: int) -> Object:
    container = {
        "image": image,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [{"name": "CMT_RELEASE", "value": "1"}, {"name": "HOME", "value": "/tmp"}],
    }
    pod: Object = {"containers": [{"name": "triton", **container}], "terminationGracePeriodSeconds": 1}
    if not HAS_NODES:  # one that does nothing would never end
        pod["initContainers"] = [{"name": "pull-release", **container}]
        pod["schedulerName"] = SCHEDULER
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 120 if HAS_NODES else 10 if KUBECONFIG else 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": {**labels, **more, "cmt/release": "1"}}, "spec": pod},
        },
    }
