"""The engine-build Job as it is rendered, in namespaces here: TensorRT for RTX builds its plans without a GPU."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cmt_export.checkpoint import checkpoint_from_preset, save_checkpoint
from cmt_pipeline.progress import no_progress
from cmt_release.checkpoints import push_checkpoint
from cmt_release.objects import open_objects
from cmt_release.store import open_store
from pods import Sandbox
from rendering import one, rendered
from small_graphs import needs_rtx
from tiny_model import TINY

STORE = "/build/store"


@dataclass
class Job:
    """The Job's pod, its claim a folder of this machine."""

    pod: dict[str, Any]
    claim: Path
    root: Path

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        (container,) = self.pod["containers"]
        chosen = {"CMT_STORE": STORE, "CHECKPOINT_STORE": STORE, **variables}
        env = [{"name": e["name"], "value": chosen.get(e["name"], e.get("value"))} for e in container["env"]]
        tmp = self.root / "tmp"
        tmp.mkdir(exist_ok=True)
        tmp.chmod(0o777)
        runs = Sandbox(self.root, {"/build": self.claim, "/tmp": tmp}, 0, self.pod["securityContext"]["runAsUser"])
        process = runs.start({**container, "env": env})
        said, _ = process.communicate(timeout=500)
        return subprocess.CompletedProcess([], process.returncode, said)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    claim = tmp_path / "claim"
    claim.mkdir()
    claim.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    return Job(
        one(rendered("gpu/engine-build"), "Job", "cmt-engine-build")["spec"]["template"]["spec"], claim, tmp_path
    )


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(bool(Sandbox.unavailable()), reason=Sandbox.unavailable())
def test_it_builds_plans_of_a_stored_checkpoint_once(job: Job, tmp_path: Path) -> None:
    save_checkpoint(checkpoint_from_preset(TINY.name, "meld"), tmp_path / "made")
    push_checkpoint(open_objects(str(job.claim / "store")), tmp_path / "made", "mine", no_progress)
    for path in [job.claim, *job.claim.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    first = job.run(CHECKPOINT="mine")
    assert first.returncode == 0, first.stdout
    manifest = open_store(str(job.claim / "store")).show()
    assert (manifest.number, manifest.info.engine, manifest.info.precision) == (1, "tensorrt", "fp16")
    assert "tensorrt_rtx" in manifest.versions
    again = job.run(CHECKPOINT="mine")
    assert again.returncode == 0, again.stdout
    assert open_store(str(job.claim / "store")).numbers() == [1], again.stdout
    assert "is up to date" in again.stdout
    assert "ONNX to tensorrt" not in again.stdout
