"""The training Job of `k8s/training`, run: two processes in namespaces of their own, one of them killed."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from built_images import image_of
from cmt_export.sources import WEIGHTS_FILE
from cmt_release.checkpoints import pull_checkpoint
from cmt_release.objects import open_objects
from cmt_rollout.kubernetes.cluster import Cluster, connect
from cmt_rollout.kubernetes.layout import ClusterOptions
from cmt_rollout.kubernetes.training_job import TrainingRequest, follow, train_on
from emulated_api.jobs import INDEX, Jobs
from emulated_api.jobs import NAME as JOB_NAME
from emulated_api.server import EmulatedApi
from job_kubelet import NamespaceKubelet
from k8s_place import KUBECONFIG
from pod_network import node
from pods import Sandbox
from published import preset_file, write_config
from rendering import one
from small_corpus import small_corpus, table_of
from small_training import without_times
from training_manifests import training_manifests

TIMING = ClusterOptions(ready_timeout_s=120, tick_s=1)
PATIENT = ClusterOptions(ready_timeout_s=600, tick_s=1)  # images are pulled, and volumes made
TRAINING_IMAGE = os.environ.get("CMT_TEST_TRAINING_IMAGE")
#: One and two processes do the same sums: nothing is drawn within networks, and none is wider than the tiny.
ALIKE = ("--preset=/training/models/my-own.toml", "--epochs=3", "--batch-size=6", "--save-every=2", "--precision=fp32")


@dataclass
class Training:
    """A namespace with a claim that holds a data set, and what is said of trainings there."""

    api: EmulatedApi
    cluster: Cluster
    kubelet: NamespaceKubelet
    claim: Path
    said: list[str] = field(default_factory=list)

    def train(self, name: str, processes: int, *options: str, on_line: Callable[[str], None] = lambda _: None) -> None:
        def say(line: str) -> None:
            self.said.append(line)
            on_line(line)

        request = TrainingRequest(name, "/training/corpus/table.csv", (*ALIKE, *options), processes)
        train_on(self.cluster, training_manifests("/training/store"), request, TIMING, say)

    def fetched(self, name: str, to: Path) -> dict[str, Tensor]:
        """The trained weights of a checkpoint of the store."""
        pull_checkpoint(open_objects(str(self.claim / "store")), name, to, lambda *_: None)
        return {key: tensor.float() for key, tensor in load_file(to / WEIGHTS_FILE).items()}

    def history(self, name: str) -> list[dict[str, float]]:
        return without_times(self.claim / "runs" / f"{name}.run")

    def of_index(self, index: int) -> list[str]:
        return [name for name in self.kubelet.running if f"-{index}-" in name]


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    claim = tmp_path / "claim"
    table_of(small_corpus(claim / "corpus", (12, 3, 3)), claim / "corpus" / "table.csv")
    preset_file(claim / "models", {})
    write_config(claim / "models" / "image", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_config(claim / "models" / "text", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    preset = claim / "models" / "my-own.toml"
    preset.write_text(preset.read_text().replace(str(claim), "/training") + "dropout = 0.0\n")
    opened_to_all(tmp_path, claim)
    with emulated_cluster(tmp_path, claim) as (cluster, api, kubelet):
        yield Training(api, cluster, kubelet, claim)


@contextmanager
def emulated_cluster(folder: Path, claim: Path) -> Iterator[tuple[Cluster, EmulatedApi, NamespaceKubelet]]:
    with EmulatedApi() as api, node(folder) as where:
        api.store.put(("namespaces", "", "cmt"), {"kind": "Namespace", "metadata": {"name": "cmt"}})
        kubelet = NamespaceKubelet(api, where, folder, {"cmt-training": claim})
        Jobs(api, kubelet).attach()
        try:
            yield connect(None, "cmt", api.kubeconfig(folder / "kubeconfig"), patience_s=5), api, kubelet
        finally:
            kubelet.stop_all()


@dataclass
class Anywhere:
    """A namespace of the cluster that CMT_TEST_KUBECONFIG names, or of an emulated one whose pods run here."""

    cluster: Cluster
    items: list[dict[str, Any]]

    def pods(self, index: int) -> list[dict[str, Any]]:
        query = [("labelSelector", f"{JOB_NAME}=cmt-training,{INDEX}={index}")]
        found: list[dict[str, Any]] = self.cluster.request("GET", self.cluster.path("pods"), query=query)["items"]
        return found

    def make_corpus(self, items: int) -> None:
        """By a Job with the same pod, in the same claim."""
        made = copy.deepcopy(self.items)
        job = one(made, "Job", "cmt-training")
        job["metadata"]["name"] = "cmt-training-corpus"
        job["spec"] |= {"completions": 1, "parallelism": 1}
        (container,) = job["spec"]["template"]["spec"]["containers"]
        container["args"] = ["corpus", "/training/corpus", f"--items={items}"]
        for item in made:
            self.cluster.apply(self.cluster.path_of(item), item, "cmt-test")
        follow(self.cluster, "cmt-training-corpus", PATIENT, print)


@pytest.fixture
def anywhere(tmp_path: Path) -> Iterator[Anywhere]:
    if KUBECONFIG is None:
        claim = tmp_path / "claim"
        claim.mkdir()
        opened_to_all(tmp_path, claim)
        with emulated_cluster(tmp_path, claim) as (cluster, _, _):
            yield Anywhere(cluster, training_manifests("/training/store"))
        return
    cluster = connect(None, f"cmt-test-{secrets.token_hex(4)}", Path(KUBECONFIG))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}}
    cluster.apply(cluster.path_of(namespace), namespace, "cmt-test")
    try:
        yield Anywhere(cluster, for_one_node(training_manifests("/training/store"), cluster.namespace))
    finally:
        cluster.request("DELETE", f"/api/v1/namespaces/{cluster.namespace}")


def for_one_node(items: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """As small as a cluster of tests is, with the caller's image."""
    for item in items:
        item["metadata"]["namespace"] = namespace
    claim = one(items, "PersistentVolumeClaim", "cmt-training")["spec"]
    claim |= {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    (container,) = one(items, "Job", "cmt-training")["spec"]["template"]["spec"]["containers"]
    container["image"] = TRAINING_IMAGE
    container["resources"]["requests"] = {"cpu": "250m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    return items


@pytest.mark.slow
@pytest.mark.skipif(
    bool(KUBECONFIG and not TRAINING_IMAGE), reason="a cluster's nodes need CMT_TEST_TRAINING_IMAGE, k8s/training's"
)
@pytest.mark.skipif(not KUBECONFIG and bool(Sandbox.unavailable()), reason=Sandbox.unavailable())
def test_a_pod_that_is_deleted_is_made_again_and_the_training_goes_on(anywhere: Anywhere) -> None:
    anywhere.make_corpus(48)
    said: list[str] = []
    lost: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "epoch 2 of 4" in line and not lost:
            lost.extend(pod["metadata"]["name"] for pod in anywhere.pods(1))
            for name in lost:
                path = anywhere.cluster.path("pods", name)
                anywhere.cluster.request("DELETE", path, query=[("gracePeriodSeconds", "0")])

    options = ("--model=text", "--epochs=4", "--save-every=1", "--threads=1")
    train_on(anywhere.cluster, anywhere.items, TrainingRequest("lost", options=options), PATIENT, say)
    assert len(lost) == 1, said
    assert not set(lost) & {pod["metadata"]["name"] for pod in anywhere.pods(1)}, said
    assert any("lost is in /training/store" in line for line in said)
    assert any("PeerLost" in line for line in said)


def opened_to_all(folder: Path, claim: Path) -> None:
    """As fsGroup makes a claim the pods' own."""
    for path in [claim, *claim.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    for parent in (folder, *folder.parents):
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(not image_of("training"), reason="the image isn't built: make images")
def test_the_built_image_trains(training: Training, tmp_path: Path) -> None:
    training.kubelet.image = image_of("training")
    training.train("one", 2)
    assert training.fetched("one", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(bool(Sandbox.unavailable()), reason=Sandbox.unavailable())
def test_two_processes_one_of_them_killed_make_what_one_makes(training: Training, tmp_path: Path) -> None:
    training.train("one", 1)

    def kill_second(line: str) -> None:
        if "epoch 2 of 3" in line and len(training.of_index(1)) == 1:
            training.kubelet.running[training.of_index(1)[0]].pod.kill()

    training.train("two", 2, on_line=kill_second)
    assert [len(training.of_index(index)) for index in (0, 1)] == [3, 2], training.said  # one of them the first's
    assert any("exit code 137" in line for line in training.said)
    assert any("exit code 75: PeerLost: another process of this training has ended" in line for line in training.said)
    histories = [training.history(name) for name in ("one", "two")]
    assert histories[0] == [pytest.approx(row, abs=2e-3) for row in histories[1]]
    whole, killed = (training.fetched(name, tmp_path / name) for name in ("one", "two"))
    assert whole.keys() == killed.keys()
    far = {name: float((whole[name] - killed[name]).abs().max()) for name in whole}
    assert max(far.values()) < 2e-3, sorted(far.items(), key=lambda item: -item[1])[:3]
