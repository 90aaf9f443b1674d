"""Namespaces for the tests of upgrades on Kubernetes; k8s_place.py says where they are. A gateway that was asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmt_release.release import Release
from cmt_rollout import rollout, trial
from cmt_rollout.golden import generated_golden
from cmt_rollout.kubernetes import target as kubernetes_target
from cmt_server.server import TritonServer
from gateways import ask_of_all_kinds, running
from k8s_place import Place, place_of, played_golden
from small_releases import make


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty namespace, and pods of a few bytes whose golden requests are played."""
    monkeypatch.setattr(rollout, "golden_faults", played_golden)
    monkeypatch.setattr(kubernetes_target, "golden_faults", played_golden)
    monkeypatch.setattr(rollout, "golden_of_release", lambda release: generated_golden(release.number))
    monkeypatch.setattr(kubernetes_target, "golden_of_release", lambda release: generated_golden(release.number))
    monkeypatch.setattr(kubernetes_target, "fits", lambda manifest, served: [])
    monkeypatch.setattr(trial, "live_like", lambda options, _: [{"text": "Well."}] * options.samples)
    for module in (rollout, trial):
        monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(kubernetes_target, "POLL_S", 0.05)
    with place_of(tmp_path) as place:
        yield place


@pytest.fixture
def deployed(place: Place) -> Place:
    """Release 1 serves."""
    place.deploy()
    place.events.clear()
    return place


@pytest.fixture
def releases(tmp_path: Path) -> list[Release]:
    """[0] is release 1."""
    return [make(tmp_path / "releases", fuse=name) for name in ("one", "two", "three")]


@pytest.fixture
def played(deployed: Place) -> Place:
    """The same, where pods can be made to fail."""
    if deployed.kubelet is None:
        pytest.skip("real nodes can't be asked to fail")
    return deployed


@pytest.fixture
def emulated(deployed: Place) -> Place:
    """The same, where the API server can be made to fail."""
    if deployed.emulation is None:
        pytest.skip("a real API server can't be asked to fail")
    return deployed


@pytest.fixture(scope="session")
def front_door(server: TritonServer) -> Iterator[str]:
    """URL of a gateway before the session's server, which was asked everything that it counts."""
    with running("--triton", server.grpc_url, "--timeout-s", "30") as (url, _):
        ask_of_all_kinds(url)
        yield url
