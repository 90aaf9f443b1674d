"""`cmt train --kubernetes`: what it submits, what it says of a Job's pods, and what it fetches; pods are played."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cmt_cli.main import app
from cmt_release.checkpoints import push_checkpoint
from cmt_release.objects import open_objects
from cmt_rollout.errors import ClusterError, RolloutError, Stuck, TrainingFailed
from cmt_rollout.kubernetes.training_job import TrainingRequest, requested
from emulated_api.jobs import Jobs
from emulated_api.rights import Rights
from emulated_api.server import EmulatedApi
from k8s_place import KUBECONFIG
from rendering import K8S, one
from training_manifests import training_manifests

pytestmark = pytest.mark.skipif(KUBECONFIG is not None, reason="needs the emulated API server")

Object = dict[str, Any]


@dataclass
class PlayedKubelet:
    """Pods that log and end as `ends` says, in the order in which they are made; what it doesn't say of runs on."""

    ends: list[tuple[list[str], int]] = field(default_factory=list)
    played: dict[str, tuple[list[str], int | None]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    def start(self, pod: Object) -> None:
        self.played[pod["metadata"]["name"]] = self.ends.pop(0) if self.ends else (["still at it"], None)

    def exit_code(self, name: str) -> int | None:
        return self.played[name][1]

    def log(self, name: str) -> Iterable[tuple[float, str]]:
        return [(1e9 + number, line) for number, line in enumerate(self.played[name][0])]

    def stop(self, name: str) -> None:
        self.stopped.append(name)


@dataclass
class Played:
    api: EmulatedApi
    jobs: Jobs
    kubelet: PlayedKubelet
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def cmt(self, *arguments: str, manifests: list[Object] | None = None) -> Result:
        rendered = self.folder / "training.yaml"
        rendered.write_text(yaml.safe_dump_all(manifests or training_manifests(str(self.store))))
        fixed = ("train", "--kubernetes", "--out", str(self.folder / "mini"), "--manifests", str(rendered))
        return CliRunner().invoke(app, [*fixed, *arguments])

    def failure(self, *arguments: str, **options: Any) -> BaseException:
        done = self.cmt(*arguments, **options)
        assert done.exception is not None, done.stdout
        return done.exception

    def job(self) -> Object:
        found = self.api.store.get(("jobs", "cmt", "cmt-training"))
        assert found is not None
        return found

    def container(self) -> Object:
        (found,) = self.job()["spec"]["template"]["spec"]["containers"]
        return dict(found)

    def arguments(self) -> list[str]:
        return list(self.container()["args"])


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """An empty namespace, and a checkpoint `mini` in the store, as a training's pods leave it."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    push_checkpoint(open_objects(str(tmp_path / "store")), made, "mini", lambda *_: None)
    monkeypatch.delenv("CMT_STORE", raising=False)
    with EmulatedApi() as api:
        api.store.put(("namespaces", "", "cmt"), {"kind": "Namespace", "metadata": {"name": "cmt"}})
        kubelet = PlayedKubelet()
        jobs = Jobs(api, kubelet, backoff_s=0.0)
        jobs.attach()
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
        yield Played(api, jobs, kubelet, tmp_path)


def test_it_submits_follows_and_fetches(played: Played) -> None:
    played.kubelet.ends = [(["epoch 1 of 12", "epoch 2 of 12"], 0), ([], 0)]
    done = played.cmt("/training/meld", "--epochs", "12", "--shard", "--tune", "full", "--processes", "2")
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines() == [
        "Job cmt-training submitted: 2 pods",
        "epoch 1 of 12",
        "epoch 2 of 12",
        f"mini is in {played.folder / 'mini'}",
    ]
    assert (played.folder / "mini" / "model.safetensors").read_bytes() == b"weights"
    words = played.arguments()
    assert words[words.index("train") + 1 :] == [
        "/training/meld",
        "--out=/training/runs/mini",
        "--resume",
        "--push",
        "--threads=4",
        "--epochs=12",
        "--tune=full",
        "--shard",
    ]
    assert {"name": "WORLD_SIZE", "value": "2"} in played.container()["env"]


def test_options_take_the_place_of_the_manifests_own(played: Played) -> None:
    items = training_manifests("/store")
    _, job = requested(items, TrainingRequest("big", None, ("--threads=2", "--pair=image=/a", "--pair=text=/b"), 3))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    after = ["--out=/training/runs/big", "--resume", "--push", "--threads=2", "--pair=image=/a", "--pair=text=/b"]
    assert words[words.index("train") + 1 :] == after
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 3)
    assert {"name": "WORLD_SIZE", "value": "3"} in container["env"]
    assert one(items, "Job", "cmt-training")["spec"]["completions"] == 2


@pytest.mark.long
def test_the_same_command_follows_the_same_job(played: Played) -> None:
    assert isinstance(played.failure("--ready-timeout-s", "0.5", manifests=refused(played)), Stuck)
    uid = played.job()["metadata"]["uid"]
    played.kubelet.ends = [(["epoch 1 of 8"], 0), ([], 0)]
    played.api.before.append(partial(admitted_once_asked, played, "pods"))
    done = played.cmt()
    assert done.exit_code == 0, done.exception
    assert "is there already, under way" in done.stdout
    assert "epoch 1 of 8" in done.stdout
    assert played.job()["metadata"]["uid"] == uid


def test_a_pod_that_dies_is_told_of_with_its_error(played: Played) -> None:
    played.kubelet.ends = [
        (["epoch 1 of 3", "PeerLost: another process of this training has ended", "more"], 75),
        ([], 137),
        (["epoch 2 of 3"], 0),
        ([], 0),
    ]
    done = played.cmt()
    assert done.exit_code == 0, done.exception
    assert "cmt-training-1-00002: failed with exit code 137" in done.stdout
    assert "cmt-training-0-00001: failed with exit code 75: PeerLost: another process" in done.stdout
    assert done.stdout.index("epoch 1 of 3") < done.stdout.index("epoch 2 of 3")
    assert done.stdout.count("epoch 1 of 3") == 1


def test_a_job_that_fails_says_why_and_may_be_tried_again(played: Played) -> None:
    played.kubelet.ends = [(["ValueError: corpus: got no such folder"], 2)]
    error = played.failure()
    assert isinstance(error, TrainingFailed)
    assert "PodFailurePolicy" in str(error)
    assert "failed with exit code 2: ValueError: corpus: got no such folder" in str(error)
    played.kubelet.ends = [(["well now"], 0), ([], 0)]
    done = played.cmt()
    assert done.exit_code == 0, done.exception
    assert "failed: taking its place" in done.stdout
    assert "well now" in done.stdout


def test_failures_count_but_not_those_of_peers(played: Played) -> None:
    items = training_manifests(str(played.store))
    one(items, "Job", "cmt-training")["spec"]["backoffLimit"] = 1
    ours, theirs = (["OSError: the disk is full"], 1), (["PeerLost: another process has ended"], 75)
    played.kubelet.ends = [ours, theirs, theirs, theirs, ours]
    error = played.failure(manifests=items)
    assert isinstance(error, TrainingFailed)
    assert "BackoffLimitExceeded" in str(error)
    assert len(played.kubelet.played) >= 5


@pytest.mark.long
def test_another_training_that_runs_is_left_alone(played: Played) -> None:
    assert isinstance(played.failure("--ready-timeout-s", "0.5", manifests=refused(played)), Stuck)
    played.jobs.refusal = ""
    error = played.failure("--epochs", "7")
    assert isinstance(error, ClusterError)
    assert "got another training than the one that Job cmt-training runs" in str(error)
    assert "--epochs=7" not in played.arguments()


def refused(played: Played) -> list[Object]:
    """The manifests, on a cluster where no pod may be made."""
    played.jobs.refusal = 'pods "cmt-training-0" is forbidden: exceeded quota: gpus'
    return training_manifests(str(played.store))


@pytest.mark.long
def test_pods_that_may_not_be_made_are_told_of(played: Played) -> None:
    error = played.failure("--ready-timeout-s", "0.5", manifests=refused(played))
    assert isinstance(error, Stuck)
    assert "not all of its pods have started for 0.5 s; Job cmt-training: FailedCreate: Error creating: pods" in str(
        error
    )
    assert "exceeded quota: gpus" in str(error)


def test_a_complete_job_is_fetched_from_and_not_run_again(played: Played) -> None:
    played.kubelet.ends = [([], 0), ([], 0)]
    assert played.cmt().exit_code == 0
    (played.folder / "mini").rename(played.folder / "before")
    done = played.cmt()
    assert done.exit_code == 0, done.exception
    assert "is there already, complete" in done.stdout
    assert len(played.kubelet.played) == 2
    assert (played.folder / "mini").is_dir()


def test_a_job_done_by_its_first_process_needs_no_other(played: Played) -> None:
    """successPolicy: the last pod may be lost after the checkpoint is sent."""
    played.kubelet.ends = [([], 0)]
    done = played.cmt()
    assert done.exit_code == 0, done.exception
    assert played.kubelet.stopped == ["cmt-training-1-00002"]


def test_a_folder_that_is_there_and_names_that_are_none_are_refused_before_anything_is_asked(played: Played) -> None:
    (played.folder / "mini").mkdir()
    assert "exists; name a new folder" in str(played.failure())
    played.api.asked.clear()
    bad = CliRunner().invoke(app, ["train", "--kubernetes", "--out", str(played.folder / "a b")])
    assert "expected letters, digits" in str(bad.exception)
    assert not played.api.asked


def test_whoever_stops_following_is_told_that_the_job_goes_on(played: Played) -> None:
    def stop(request: Any) -> None:
        if request.subresource == "log":
            os.kill(os.getpid(), signal.SIGINT)

    played.api.before.append(stop)
    done = played.cmt()
    assert done.exit_code != 0
    assert "goes on; the same command follows it" in done.stdout
    assert "deletionTimestamp" not in played.job()["metadata"]
    assert not played.kubelet.stopped


def test_an_api_server_that_restarts_is_waited_for(played: Played) -> None:
    played.kubelet.ends = [(["epoch 1 of 3"], 0), ([], 0)]
    restarted: list[bool] = []

    def restart(request: Any) -> None:
        if request.subresource == "log" and not restarted:
            restarted.append(True)
            played.api.restart(0.3)

    played.api.before.append(restart)
    done = played.cmt()
    assert done.exit_code == 0, done.exception
    assert done.stdout.count("epoch 1 of 3") == 1
    assert restarted


def test_manifests_without_a_training_are_refused(played: Played) -> None:
    items = [item for item in training_manifests("/store") if item["kind"] != "Job"]
    assert "the manifests hold 0 Jobs" in str(played.failure(manifests=items))


@pytest.mark.long
@pytest.mark.parametrize("missing", [None, ("", "pods/log", "get"), ("batch", "jobs", "delete")])
def test_the_rights_named_in_the_docs_are_enough_and_needed(played: Played, missing: tuple[str, ...] | None) -> None:
    role = next(
        item for item in yaml.safe_load_all((K8S / "training" / "rbac.yaml").read_text()) if item["kind"] == "Role"
    )
    rules = [
        {**rule, "apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if (group, resource, verb) != missing
    ]
    rights = played.api.users["trainer"] = Rights(rules)
    played.api.kubeconfig(played.folder / "kubeconfig")
    items = training_manifests(str(played.store))
    played.kubelet.ends = [(["ValueError: no"], 2), ([], 0), ([], 0)]
    refused(played)
    played.api.before.append(partial(admitted_once_asked, played, "events"))
    with pytest.raises(RolloutError):
        raised(played.cmt("--context", "trainer", manifests=items))
    again = played.cmt("--context", "trainer", manifests=items)
    if missing is None:
        assert again.exit_code == 0, again.exception
        assert rights.granted == rights.used
    else:
        assert isinstance(again.exception, ClusterError)
        assert rights.refused


def admitted_once_asked(played: Played, plural: str, request: Any) -> None:
    if request.plural == plural:
        played.jobs.refusal = ""


def raised(done: Result) -> None:
    assert done.exception is not None, done.stdout
    raise done.exception
