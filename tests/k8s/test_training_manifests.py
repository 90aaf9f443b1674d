"""The manifests of distributed training: schemas, the operator's rules, and that commands, ports and names agree."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from cmt_cli.main import app
from cmt_cli.show import fail
from cmt_rollout.kubernetes.manifest_rules import faults
from cmt_training.distributed import PeerLost

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s" / "training"
KUBECTL = Path(sys.executable).with_name("kubectl")
KUBERNETES = ("1.35", "1.36", "1.37")
FILES = ("claim.yaml", "store.yaml", "service.yaml", "network-policy.yaml", "job.yaml")

Object = dict[str, Any]


def read(name: str) -> Object:
    loaded: Object = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def pod_of(name: str) -> Object:
    """The pod template of job.yaml or pytorchjob.yaml."""
    spec = read(name)["spec"]
    template: Object = (spec["pytorchReplicaSpecs"]["Worker"] if name == "pytorchjob.yaml" else spec)["template"]
    return template


def container_of(name: str) -> Object:
    (container,) = pod_of(name)["spec"]["containers"]
    return dict(container)


def pytorchjob_faults(job: Object) -> list[str]:
    """What the training operator would refuse or misread, of the fields that are used here."""
    spec, found = job["spec"], []
    known = {"nprocPerNode", "elasticPolicy", "runPolicy", "pytorchReplicaSpecs"}
    run = {"cleanPodPolicy", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"}
    found += [f"unknown field {name}" for name in set(spec) - known | set(spec["runPolicy"]) - run]
    elastic = {"rdzvBackend", "minReplicas", "maxReplicas", "maxRestarts"}
    found += [f"unknown field {name}" for name in set(spec["elasticPolicy"]) - elastic]
    if not isinstance(spec["nprocPerNode"], str):
        found.append("nprocPerNode is no string")
    if set(spec["pytorchReplicaSpecs"]) != {"Worker"}:
        found.append("an elastic job without init containers has workers alone")
    for name, replica in spec["pytorchReplicaSpecs"].items():
        if set(replica) != {"replicas", "restartPolicy", "template"}:
            found.append(f"{name} has {sorted(replica)}")
        if replica["restartPolicy"] not in ("Always", "OnFailure", "Never", "ExitCode"):
            found.append(f"{name} has restartPolicy {replica['restartPolicy']}")
        if [c["name"] for c in replica["template"]["spec"]["containers"]] != ["pytorch"]:
            found.append(f"{name} has no container named pytorch")
        if not spec["elasticPolicy"]["minReplicas"] <= replica["replicas"] <= spec["elasticPolicy"]["maxReplicas"]:
            found.append(f"{name} has {replica['replicas']} replicas")
    return found


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_rendered_objects_pass_the_strict_schemas(version: str) -> None:
    done = subprocess.run([KUBECTL, "kustomize", FOLDER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    kinds = ["ConfigMap", "Job", "NetworkPolicy", "PersistentVolumeClaim", "Service", "ServiceAccount"]
    assert sorted(each["kind"] for each in objects) == kinds
    assert not faults(objects)
    for each in objects:
        assert kubernetes_validate.validate(each, version, strict=True) == version
        assert each["metadata"]["namespace"] == "cmt"


def test_the_schemas_are_strict() -> None:
    job = read("job.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(job, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_operators_pods_pass_the_strict_schemas_too(version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(pod_of("pytorchjob.yaml"))}
    pod["metadata"]["name"] = "cmt-training-worker-0"
    assert kubernetes_validate.validate(pod, version, strict=True) == version


def test_the_pytorchjob_has_its_shape() -> None:
    job = read("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert pytorchjob_faults(job) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("nprocPerNode",), 1, "nprocPerNode is no string"),
        (("nProcPerNode",), "1", "unknown field nProcPerNode"),
        (("runPolicy", "backoff"), 3, "unknown field backoff"),
        (("pytorchReplicaSpecs", "Worker", "replicas"), 3, "Worker has 3 replicas"),
        (("pytorchReplicaSpecs", "Worker", "restartPolicy"), "Sometimes", "Worker has restartPolicy Sometimes"),
    ],
)
def test_a_wrong_pytorchjob_is_found(path: tuple[str, ...], value: object, fault: str) -> None:
    job = read("pytorchjob.yaml")
    place = job["spec"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert pytorchjob_faults(job) == [fault]


@pytest.mark.parametrize("name", ["job.yaml", "pytorchjob.yaml"])
def test_pods_ask_for_no_rights_and_have_shared_memory(name: str) -> None:
    pod, container = pod_of(name)["spec"], container_of(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts["/training"]["persistentVolumeClaim"]["claimName"] == read("claim.yaml")["metadata"]["name"]
    assert read("claim.yaml")["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("name", "command", "before"),
    [("job.yaml", "cmt", []), ("pytorchjob.yaml", "torchrun", ["--module", "cmt_cli.main"])],
)
def test_the_command_is_one_that_cmt_knows(name: str, command: str, before: list[str]) -> None:
    container = container_of(name)
    assert container["command"] == [command]
    arguments = container["args"]
    at = arguments.index("train")
    assert arguments[:at] == before
    asked = {argument.split("=")[0] for argument in arguments[at:] if argument.startswith("--")}
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    known = set(re.findall(r"--[a-z-]+", shown))
    assert {"--out", "--resume", "--push"} <= asked <= known
    assert f"--threads={container['resources']['limits']['cpu']}" in arguments


def test_the_processes_of_the_job_meet() -> None:
    job, service = read("job.yaml"), read("service.yaml")
    spec, pod, container = job["spec"], pod_of("job.yaml"), container_of("job.yaml")
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["WORLD_SIZE"])
    assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert port["port"] == int(variables["MASTER_PORT"]) == container["ports"][0]["containerPort"]
    (rank,) = (each for each in container["env"] if each["name"] == "RANK")
    assert rank["valueFrom"]["fieldRef"]["fieldPath"].endswith("['batch.kubernetes.io/job-completion-index']")


def test_the_jobs_exit_codes_are_the_commands() -> None:
    rules = read("job.yaml")["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert codes == {"FailJob": [fail(ValueError("no"))], "Ignore": [fail(PeerLost("gone"))]}


@pytest.mark.parametrize("name", ["job.yaml", "pytorchjob.yaml"])
def test_the_network_policy_lets_them_talk(name: str) -> None:
    policy, labels = read("network-policy.yaml")["spec"], pod_of(name)["metadata"]["labels"]
    (peer,) = (rule["podSelector"]["matchLabels"] for rule in policy["ingress"][0]["from"])
    for chosen in (
        policy["podSelector"]["matchLabels"],
        peer,
        policy["egress"][0]["to"][0]["podSelector"]["matchLabels"],
    ):
        assert chosen.items() <= labels.items()


def test_every_file_is_used() -> None:
    assert set(read("kustomization.yaml")["resources"]) == set(FILES)
    assert {path.name for path in FOLDER.iterdir()} == {
        *FILES,
        "pytorchjob.yaml",
        "rbac.yaml",
        "kustomization.yaml",
        "Dockerfile",
    }
    image = container_of("job.yaml")["image"]
    assert f"--tag {image} ." in (FOLDER / "Dockerfile").read_text()
    assert container_of("pytorchjob.yaml")["image"] == image
