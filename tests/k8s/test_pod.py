"""The rendered pod here: its init container pulls, its server answers the probes, drains and ends in time."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from built_images import image_of
from cmt_cli.export import sample
from cmt_client import EmotionClient
from cmt_pipeline.progress import no_progress
from cmt_release.release import Release
from cmt_release.store import open_store
from cmt_rollout.kubernetes import layout
from cmt_rollout.kubernetes.rendered import quantity
from pods import Loopback, Sandbox, http_status, resolved, skip_where_covered
from rendering import rendered

Runs = Loopback | Sandbox


@pytest.fixture(scope="module")
def store(tiny: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in a folder, as the dev overlay mounts it."""
    folder = tmp_path_factory.mktemp("store")
    open_store(str(folder)).push(tiny, no_progress)
    return folder


@pytest.fixture
def folders(store: Path, tmp_path: Path) -> dict[str, Path]:
    """The pod's volumes by where it mounts them."""
    found = {"/state": tmp_path / "state", "/tmp": tmp_path / "tmp", "/store": store}
    for folder in found.values():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    for parent in [*tmp_path.parents, *store.parents]:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)  # the pod runs as another user
    return found


@contextmanager
def running(runs: Runs, pod: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The init container done, the server started and past its startup probe."""
    (init,), (container,) = pod["initContainers"], pod["containers"]
    pulled = runs.start(init)
    said, _ = pulled.communicate(timeout=120)
    assert pulled.returncode == 0, said
    process = runs.start(container)
    try:
        deadline = time.monotonic() + 200
        while probed(runs, container, "startupProbe") != 200:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield process
    finally:
        if process.poll() is None:
            runs.signal(process)
            process.communicate(timeout=120)


def probed(runs: Runs, container: dict[str, Any], kind: str) -> int:
    ask = container[kind]["httpGet"]
    (port,) = (p["containerPort"] for p in container["ports"] if p["name"] == ask["port"])
    return runs.status(port, ask["path"])


def ends(runs: Runs, pod: dict[str, Any], process: subprocess.Popen[str]) -> None:
    """SIGTERM, as after preStop: it stops being ready and ends by itself, within what is left of the grace period."""
    (container,) = pod["containers"]
    left = pod["terminationGracePeriodSeconds"] - container["lifecycle"]["preStop"]["sleep"]["seconds"]
    runs.signal(process)
    said, _ = process.communicate(timeout=left)
    assert process.returncode == 0, said
    assert "draining" in said


@pytest.mark.long
def test_the_rendered_command_lines_answer_the_probes(tiny: Release, folders: dict[str, Path], tmp_path: Path) -> None:
    pod = resolved(rendered("dev"), layout.STABLE, tiny.number)
    (container,) = pod["containers"]
    runs = Loopback(tmp_path, folders)
    with running(runs, pod) as process:
        assert probed(runs, container, "readinessProbe") == 200
        assert probed(runs, container, "livenessProbe") == 200
        assert runs.status(8002, "/metrics") == 200
        assert runs.status(8000, "/v2/repository/index") != 200
        with EmotionClient(f"grpc://127.0.0.1:{runs.ports[8001]}", retries=0) as client:
            assert client.predict(image=sample("image"), text="Hello?").release == tiny.number
        ends(runs, pod, process)
    assert probed(runs, container, "livenessProbe") == 0


def test_a_probe_of_another_path_fails(tiny: Release, server: Any) -> None:
    assert http_status(server.http_port, "/v2/models/emotion/ready") == 200
    assert http_status(server.http_port, "/v2/models/emotions/ready") == 400


@pytest.mark.long
@pytest.mark.skipif(bool(Sandbox.unavailable()), reason=Sandbox.unavailable())
@pytest.mark.parametrize("name", ["dev"])
def test_the_pod_runs_as_it_is_rendered(tiny: Release, folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    runs_as_rendered(tiny, folders, tmp_path, name)


@pytest.mark.slow
@pytest.mark.skipif(not image_of("cpu"), reason="the image isn't built: make images")
def test_the_built_image_runs_as_it_is_rendered(tiny: Release, folders: dict[str, Path], tmp_path: Path) -> None:
    runs_as_rendered(tiny, folders, tmp_path, "dev", image_of("cpu"))


def runs_as_rendered(
    tiny: Release, folders: dict[str, Path], tmp_path: Path, name: str, image: Sequence[Path] = ()
) -> None:
    """Nothing translated: paths, ports, user 10001 without capabilities, a root that can't be written to.

    image: its layers; without it the command is the one that is installed here.
    """
    pod = resolved(rendered(name), layout.STABLE, tiny.number)
    (container,) = pod["containers"]
    # The image has a Triton that may listen on 0.0.0.0; the one at hand is the wheel's, in a network of its own.
    container["env"].append({"name": "CMT_EXPOSE_VULNERABLE_TRITON", "value": "1"})
    if not image:
        skip_where_covered(container)
    (shm,) = (v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm")
    runs = Sandbox(tmp_path, folders, int(quantity(shm)), pod["securityContext"]["runAsUser"], image=image)
    with running(runs, pod) as process:
        for kind in ("readinessProbe", "livenessProbe"):
            assert probed(runs, container, kind) == 200
        assert runs.status(8002, "/metrics") == 200
        answered = runs.inside(
            [
                sys.executable,
                "-m",
                "cmt_cli.main",
                "predict",
                "--json",
                "--url",
                "grpc://127.0.0.1:8001",
                "--text",
                "Hello?",
            ]
        )
        assert re.search(r'"label"', answered.stdout), answered.stderr
        started = time.monotonic()
        ends(runs, pod, process)
        print(f"ended after {time.monotonic() - started:.1f} s")
    assert all(path.stat().st_uid == 10001 for path in folders["/state"].iterdir())
