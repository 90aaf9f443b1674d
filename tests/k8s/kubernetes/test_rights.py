"""`cmt upgrade --kubernetes` as a whole, with the real tritonserver behind the emulated pods.

The command, port forwarding, and the rights of k8s/components/rollout-rbac.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config
from typer.testing import CliRunner

from cmt_cli.main import app
from cmt_cli.state import State
from cmt_client import EmotionClient
from cmt_engine.engine import Precision
from cmt_pipeline.stages import STAGES
from cmt_release.release import Release
from cmt_rollout.errors import RolloutError, StepFailed
from cmt_rollout.kubernetes import port_forward
from cmt_rollout.kubernetes.cluster import connect
from cmt_rollout.kubernetes.layout import CANARY, LEASE, RELEASE
from cmt_rollout.kubernetes.pods import Pod
from cmt_rollout.kubernetes.port_forward import DirectConnector
from cmt_rollout.options import STEPS
from cmt_server.server import TritonServer
from emulated_api.rights import Rights
from emulated_api.server import EmulatedApi
from k8s_place import KUBECONFIG, Place, manifests, place_of, role_rules
from serving import server_on

QUICK = ("--canary-s", "0.2", "--watch-s", "0.2", "--max-slowdown", "20", "--canary-share", "0.5", "--json")
UNLIKE = ("--max-flips", "1", "--max-distance", "1")


@dataclass
class Driven:
    """A namespace whose pods are real tritonservers."""

    place: Place
    api: EmulatedApi
    release: Release
    state: State

    def cmt(self, *arguments: str) -> list[dict[str, Any]]:
        """The events of a command. Raises what it raised."""
        common = ("--kubernetes", "--context", "rollout", "--state", str(self.state.root))
        done = CliRunner().invoke(app, [*arguments, *common], catch_exceptions=False)
        if done.exception is not None:
            raise done.exception
        return [json.loads(line) for line in done.stdout.splitlines()]


Drive = Callable[[Release, State, int, Mapping[int, TritonServer]], Driven]


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    """Makes the namespace: the release to be driven, its store, the live one, and the server behind each one's pods."""
    if KUBECONFIG is not None:
        pytest.skip("forwarding needs a kubelet and a container that listens, that is an image")
    with contextlib.ExitStack() as stack:

        def made(release: Release, state: State, live: int, servers: Mapping[int, TritonServer]) -> Driven:
            place = stack.enter_context(place_of(tmp_path))
            assert place.emulation
            place.emulation.backend = lambda pod, port: (
                "127.0.0.1",
                servers[int(pod["metadata"]["labels"][RELEASE])].grpc_port,  # type: ignore[index]
            )
            place.emulation.users["rollout"] = Rights(role_rules())
            monkeypatch.setenv("KUBECONFIG", str(place.emulation.kubeconfig(place.kubeconfig)))
            monkeypatch.delenv("CMT_STORE", raising=False)
            place.deploy(release=live)
            # as with kubectl
            place.cluster.request("DELETE", place.cluster.path("leases", LEASE, "coordination.k8s.io/v1"))
            return Driven(place, place.emulation, release, state)

        yield made


@pytest.fixture
def driven(drive: Drive, server: TritonServer, release_of: Callable[[Precision], Release], state: State) -> Driven:
    return drive(release_of("fp32"), state, 1000, defaultdict(lambda: server))


@pytest.mark.long
def test_there_and_back_with_the_least_rights_that_work(
    drive: Drive, tinies: tuple[Release, Release], tiny_state: State, tmp_path: Path
) -> None:
    """On real answers: golden requests, drift and canary go through the API server to the pods on trial."""
    old, new = tinies
    with server_on(old, tmp_path / "old") as before, server_on(new, tmp_path / "new") as after:
        driven = drive(new, tiny_state, old.number, {old.number: before, new.number: after})
        events = driven.cmt("upgrade", str(new.number), *QUICK, *UNLIKE)
        assert [event["step"] for event in events if event["state"] == "passed"] == list(STEPS)
        assert "golden requests answered by release" in next(
            e["detail"] for e in events if (e["step"], e["state"]) == ("golden", "passed")
        )
        assert any(event["state"] == "progress" for event in events)
        driven.place.settled(new.number)
        driven.cmt("rollback", "--json")
        driven.place.settled(old.number)
    rights = driven.api.users["rollout"]
    assert rights.refused == []
    assert rights.granted - rights.used == set(), "rights that nothing used"


@pytest.mark.long
def test_pods_that_answer_from_another_release_never_take_traffic(driven: Driven, tmp_path: Path) -> None:
    number = driven.release.number + 1
    manifest = driven.release.manifest
    stages = {n: replace(s, version=number) if STAGES[n].stamped else s for n, s in manifest.stages.items()}
    manifest = replace(manifest, info=replace(manifest.info, release=number), stages=stages)
    driven.state = State(tmp_path / "state")
    folder = driven.state.releases / str(number)
    shutil.copytree(driven.release.folder, folder)
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(StepFailed, match=rf"golden on cmt/cmt-triton: .*release {number - 1} answered"):
        driven.cmt("upgrade", str(number), *QUICK)
    driven.place.settled(1000)


@pytest.mark.long
def test_a_right_that_is_missing_is_named(driven: Driven) -> None:
    driven.api.users["rollout"].rules = [rule for rule in role_rules() if "patch" not in rule["verbs"]]
    with pytest.raises(RolloutError, match='User "rollout" cannot get resource "deployments"'):
        driven.cmt("upgrade", str(driven.release.number), *QUICK)
    assert driven.place.live() == 1000


def test_a_release_that_the_store_hasnt_is_refused(driven: Driven, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"preflight on .*: the pods can't pull it .*`cmt release push`"):
        driven.cmt("upgrade", str(driven.release.number), *QUICK, "--store", str(tmp_path / "store"))
    driven.place.settled(1000)


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--keep",), "got --keep with --kubernetes"), (("--server", "a=b"), "got --server with --kubernetes")],
)
def test_options_of_a_single_server_are_refused(driven: Driven, more: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        driven.cmt("upgrade", str(driven.release.number), *QUICK, *more)


def test_the_command_deploys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with place_of(tmp_path) as place:
        monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig))
        rendered, override = tmp_path / "all.yaml", tmp_path / "override.yaml"
        rendered.write_text(yaml.safe_dump_all(manifests(place.namespace)))
        override.write_text("spec: {containers: [{name: triton, env: [{name: MORE, value: '1'}]}]}")
        arguments = ["deploy", str(rendered), "--release", "3", "--override", str(override), "--json"]
        arguments += ["--namespace", place.namespace]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        place.settled(3)
        env = place.deployment(CANARY)["spec"]["template"]["spec"]["containers"][0]["env"]
        assert {"name": "MORE", "value": "1"} in env


def test_within_the_cluster_a_pod_is_asked_by_its_address(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_forward, "GRPC_PORT", server.grpc_port)
    pod = Pod("one", "1", "127.0.0.1", "1", True, False, {}, "", False)
    with EmotionClient(pod.name, transport=DirectConnector().transport(pod)) as client:
        assert client.predict(text="Well.").probabilities


def test_within_a_pod_its_own_cluster_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("SERVICE_TOKEN_FILENAME", "secret"), ("SERVICE_CERT_FILENAME", "unread")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(incluster_config, name, str(tmp_path / name))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    cluster = connect()
    assert cluster.name == "this cluster"
    assert cluster.api.configuration.host == "https://10.0.0.1:443"
