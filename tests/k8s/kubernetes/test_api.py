"""An API server that is busy, away, forgetful or says no; on the emulation, which can be made to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt_release.release import Release
from cmt_rollout.errors import ApplyConflict, ClusterError, StepFailed
from cmt_rollout.kubernetes.cluster import Cluster, connect
from cmt_rollout.kubernetes.layout import CANARY, STABLE
from cmt_rollout.options import STEPS
from emulated_api.requests import Refused, Request
from emulated_api.rights import Rights
from emulated_api.server import EmulatedApi
from k8s_place import Place

CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "1"}}


@pytest.fixture
def api(emulated: Place) -> EmulatedApi:
    assert emulated.emulation
    return emulated.emulation


def conflicts(times: int) -> Callable[[Request], None]:
    """Somebody else's change comes in between, so often."""
    left = [times]

    def between(request: Request) -> None:
        if request.method == "PATCH" and left[0]:
            left[0] -= 1
            raise Refused(409, "Conflict", "Operation cannot be fulfilled: the object has been modified")

    return between


@pytest.mark.long
def test_a_busy_server_is_asked_again_when_it_says(emulated: Place, api: EmulatedApi) -> None:
    api.refuse(1, 429, retry_after_s=1)
    start = time.monotonic()
    assert emulated.live() == 1
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_without_a_time_it_is_asked_again_soon(emulated: Place, api: EmulatedApi, code: int) -> None:
    api.refuse(2, code)
    assert emulated.live() == 1


def test_patience_ends(emulated: Place, api: EmulatedApi) -> None:
    impatient = connect(None, "cmt", emulated.kubeconfig, patience_s=0.3)
    api.refuse(99, 503)
    with pytest.raises(ClusterError, match="too many requests, please try again later"):
        impatient.find(impatient.path("pods"))
    api.before.clear()
    api._hang_up()
    with pytest.raises(ClusterError, match=r"no answer from the API server of http://127\.0\.0\.1:\d+ for 0\.3 s"):
        impatient.find(impatient.path("pods"))
    api._listen()


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_an_answer_that_breaks_off_is_asked_for_again(emulated: Place, api: EmulatedApi, method: str) -> None:
    cluster, path = emulated.cluster, emulated.cluster.path("deployments", STABLE, "apps/v1")
    api.cut_short = 2
    if method == "GET":
        assert cluster.request("GET", path)["metadata"]["name"] == STABLE
    else:
        annotated(cluster, "7")
        assert cluster.request("GET", path)["metadata"]["annotations"]["number"] == "7"
    assert api.cut_short == 0


def test_answers_that_all_break_off_end_patience(emulated: Place, api: EmulatedApi) -> None:
    impatient = connect(None, "cmt", emulated.kubeconfig, patience_s=0.3)
    api.cut_short = 99
    with pytest.raises(ClusterError, match=r"no answer from the API server .* for 0\.3 s"):
        impatient.find(impatient.path("pods"))


@pytest.mark.long
def test_changes_in_the_same_moment_are_tried_again(emulated: Place, api: EmulatedApi, releases: list[Release]) -> None:
    api.before.append(conflicts(3))
    emulated.upgrade(releases[1])
    emulated.settled(2)


@pytest.mark.long
def test_a_restart_in_every_step_is_sat_out(emulated: Place, api: EmulatedApi, releases: list[Release]) -> None:
    emulated.upgrade(releases[1], at={step: lambda: api.restart(0.2) for step in ("load", "canary", "flip", "retire")})
    assert [event.step for event in emulated.events if event.state == "passed"] == list(STEPS)
    emulated.settled(2)


@pytest.mark.long
def test_a_restart_on_the_way_back_is_sat_out(emulated: Place, api: EmulatedApi, releases: list[Release]) -> None:
    emulated.connector.wrong = lambda pod: pod.release == "2"
    with pytest.raises(StepFailed, match="golden"):
        emulated.upgrade(releases[1], at={"rollback": lambda: api.restart(0.2)})
    emulated.settled(1)


@pytest.mark.long
def test_rights_that_are_read_late_after_a_restart_are_waited_for(
    emulated: Place, api: EmulatedApi, releases: list[Release]
) -> None:
    """On the way there in every step, and on the way back."""
    with_rights = emulated.with_rights()
    late = {step: lambda: api.restart(0.1, rights_after_s=0.2) for step in ("load", "canary", "flip", "retire")}
    with_rights.upgrade(releases[1], at=late)
    with_rights.settled(2)
    with_rights.connector.wrong = lambda pod: pod.release == "3"
    with pytest.raises(StepFailed, match="golden"):
        with_rights.upgrade(releases[2], at={"rollback": late["flip"]})
    with_rights.settled(2)
    assert api.users["rollout"].refused == []


def test_a_right_that_stays_away_is_named_and_what_admission_refuses_is_final(
    emulated: Place, api: EmulatedApi
) -> None:
    api.users["nobody"] = Rights([])
    nobody = connect("nobody", "cmt", api.kubeconfig(emulated.kubeconfig))
    with pytest.raises(ClusterError, match=r'User "nobody" cannot list resource "pods"'):
        nobody.request("GET", nobody.path("pods"), rights_s=0.2)
    asked = len(api.asked)
    assert nobody.look("events") == []
    assert len(api.asked) == asked + 1
    item = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": 0}}}
    emulated.cluster.apply(emulated.cluster.path("resourcequotas", "none"), item, "test")
    asked = len(api.asked)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}}
    with pytest.raises(ClusterError, match="exceeded quota"):
        emulated.cluster.request("POST", emulated.cluster.path("pods"), pod)
    assert len(api.asked) == asked + 1


def test_watches_that_expire_or_break_off_begin_anew(emulated: Place, api: EmulatedApi) -> None:
    """410 from the list's version on, then within the stream, then a lost connection: no change is missed."""
    cluster, collection = emulated.cluster, emulated.cluster.path("deployments", group="apps/v1")
    followed = cluster.follow(collection, STABLE, 5)
    assert next(followed)["metadata"]["name"] == STABLE
    api.store.forget_history()
    next(followed)  # listed anew
    changes = [api.store.forget_history, lambda: api.restart(0.1), lambda: None]
    for number, disturb in enumerate(changes):
        disturb()
        threading.Timer(0.3, annotated, (cluster, str(number))).start()
        assert until_annotated(followed, str(number)), f"change {number} was missed"
    watched = [line for line in api.asked if "watch=true" in line]
    assert all("allowWatchBookmarks=true" in line for line in watched)
    followed.close()


def annotated(cluster: Cluster, value: str) -> None:
    patch = {"metadata": {"annotations": {"number": value}}}
    path = cluster.path("deployments", STABLE, "apps/v1")
    cluster.request("PATCH", path, patch, kind="application/merge-patch+json")


def until_annotated(followed: Any, value: str) -> bool:
    end = time.monotonic() + 10
    for item in followed:
        if item["metadata"].get("annotations", {}).get("number") == value:
            return True
        if time.monotonic() > end:
            return False
    return False


@pytest.mark.long
def test_bookmarks_move_a_quiet_watch_on(emulated: Place, api: EmulatedApi) -> None:
    """Others' changes make its version old; what a bookmark said is still good after the history is forgotten."""
    cluster = emulated.cluster
    followed = cluster.follow(cluster.path("deployments", group="apps/v1"), STABLE, 1)
    next(followed)
    cluster.apply(cluster.path("configmaps", "one"), CONFIG, "test")
    next(followed)
    versions = [line.split("resourceVersion=")[1].split("&")[0] for line in api.asked if "watch=true" in line]
    next(followed)
    later = [line.split("resourceVersion=")[1].split("&")[0] for line in api.asked if "watch=true" in line]
    assert int(later[-1]) > int(versions[0])
    followed.close()


def test_a_followed_object_that_is_deleted_is_said_to_be_gone(deployed: Place) -> None:
    cluster = deployed.cluster
    followed = cluster.follow(cluster.path("deployments", group="apps/v1"), CANARY, 5)
    next(followed)
    cluster.request("DELETE", cluster.path("deployments", CANARY, "apps/v1"))
    with pytest.raises(ClusterError, match="cmt-triton-canary is gone"):
        list(followed)
    with pytest.raises(ClusterError, match=r"there is no Deployment cmt-triton-canary .*canary component included"):
        deployed.target().end_trial()


def test_apply_takes_only_its_own_fields(deployed: Place) -> None:
    cluster, path = deployed.cluster, deployed.cluster.path("configmaps", "one")
    cluster.apply(path, CONFIG, "first")
    cluster.apply(path, {**CONFIG, "data": {"b": "2"}}, "second")
    assert cluster.request("GET", path)["data"] == {"a": "1", "b": "2"}
    with pytest.raises(ApplyConflict, match=r"first sets \.data\.a") as caught:
        cluster.apply(path, {**CONFIG, "data": {"a": "3"}}, "second")
    assert caught.value.managers == ("first",)
    cluster.apply(path, {**CONFIG, "data": {"a": "3"}}, "second", dry_run=True, force_conflicts=True)
    assert cluster.request("GET", path)["data"]["a"] == "1"
    cluster.apply(path, {**CONFIG, "data": {"a": "3"}}, "second", force_conflicts=True)
    assert cluster.request("GET", path)["data"] == {"a": "3"}  # what second left out of its own is gone


def test_kinds_that_a_cluster_doesnt_know_are_named(deployed: Place) -> None:
    item = {"apiVersion": "example.com/v1", "kind": "Scaler", "metadata": {"name": "one"}}
    with pytest.raises(ClusterError, match=r"doesn't know Scaler of example\.com/v1: install what brings it"):
        deployed.cluster.path_of(item)


def test_no_cluster_to_go_to_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"no cluster to go to: .*--context"):
        connect()


def test_a_context_that_isnt_there_is_said(deployed: Place) -> None:
    with pytest.raises(ClusterError, match=r"no cluster to go to: .*elsewhere"):
        connect("elsewhere", None, deployed.kubeconfig)
