"""The rendered pod of the front door here: its command line and configuration start, its probes answer, it drains."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from built_images import image_of
from cmt_gateway.keys import new_key
from doc_blocks import ROOT
from pods import Sandbox, resolved, skip_where_covered
from rendering import rendered

FRONT_DOOR = "cmt-front-door"
ASK = """
import httpx, sys
for key in ("", sys.argv[1]):
    answer = httpx.post("http://127.0.0.1:8080/v1/emotion", json={"text": "a"}, headers={"X-API-Key": key}, timeout=30)
    print(answer.status_code, answer.json()["code"])
"""

pytestmark = pytest.mark.skipif(bool(Sandbox.unavailable()), reason=Sandbox.unavailable())


@pytest.mark.long
def test_the_pod_runs_as_it_is_rendered(tmp_path: Path) -> None:
    runs_as_rendered(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not image_of("front-door"), reason="the image isn't built: make images")
def test_the_built_image_runs_as_it_is_rendered(tmp_path: Path) -> None:
    runs_as_rendered(tmp_path, image_of("front-door"))


def runs_as_rendered(tmp_path: Path, image: Sequence[Path] = ()) -> None:
    """As user 10001 on a root that can't be written to. Its network has no Triton: it lives and isn't ready."""
    pod = resolved(rendered("cpu, front door"), FRONT_DOOR, 1)
    (container,) = pod["containers"]
    if not image:
        skip_where_covered(container)
    dockerfile = (ROOT / "k8s" / "images" / "front-door.Dockerfile").read_text()
    container["command"] = json.loads(re.findall(r"^ENTRYPOINT (.+)$", dockerfile, re.MULTILINE)[0])
    folders = {path: tmp_path / path[1:] for path in ("/keys", "/tmp")}
    for folder in folders.values():
        folder.mkdir()
        folder.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)  # the pod runs as another user
    key = new_key(folders["/keys"] / "keys", "shop")
    (folders["/keys"] / "keys").chmod(0o644)  # a Secret's file is its group's
    runs = Sandbox(tmp_path, folders, 1 << 20, pod["securityContext"]["runAsUser"], image=image)
    process = runs.start(container)
    try:
        deadline = time.monotonic() + 60
        while runs.status(8080, container["startupProbe"]["httpGet"]["path"]) != 200:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert runs.status(8080, container["readinessProbe"]["httpGet"]["path"]) == 503
        asked = runs.inside([sys.executable, "-c", ASK, key])
        assert asked.stdout.splitlines() == ["401 key", "503 unavailable"], asked.stderr
        runs.signal(process)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert "draining" in said
        lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert lines, "logs are JSON, as front-door.env says"
        assert key not in said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
