"""Images without Docker: Dockerfiles are read as Docker does, and hold what `cmt` needs. `make images` builds them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_perf.images.__main__ import IMAGES, Told, over_budget
from cmt_perf.images.build import ROOT, Image, build, built, layer_bytes
from cmt_perf.images.dockerfile import Copy, Run, read_dockerfile
from rooms import FOLDERS

DOCKERFILES = sorted(path for folder in ("k8s", "server") for path in (ROOT / folder).rglob("*Dockerfile"))
TOLD = Told("cpu", "debian", (), 100, 100, 3)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_image_copies_what_is_there_and_all_that_the_command_loads(path: Path) -> None:
    code = "import sys, cmt_cli.main; print(*{name.split('.')[0] for name in sys.modules if name.startswith('cmt_')})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cmt_pipeline" in loaded
    stage, *_ = read_dockerfile(path)
    sources = [source for step in stage.steps if isinstance(step, Copy) for source in step.sources]
    assert all((ROOT / source).exists() for source in sources)
    packages = [f"{FOLDERS[name]}/{name}" for name in loaded]
    assert not [name for name in packages if not any(name == s or name.startswith(f"{s}/") for s in sources)]


def test_a_dockerfile_is_read_stage_by_stage() -> None:
    serve, check = read_dockerfile(ROOT / "k8s" / "images" / "gpu.Dockerfile", {"TRITON_IMAGE": "triton:1"})
    assert (serve.base, serve.name, check.base, check.name) == ("triton:1", "serve", "serve", "check")
    assert (serve.user, serve.folder, serve.entrypoint) == ("10001:10001", "/opt/cmt", ("cmt",))
    (run,) = (step for step in serve.steps if isinstance(step, Run))
    assert run.folder == "/opt/cmt"
    assert run.command.split()[:3] == ["PIP_BREAK_SYSTEM_PACKAGES=1", "pip", "install"]
    assert Copy(("pyproject.toml", "README.md", "LICENSE"), "/opt/cmt") in serve.steps
    assert check.variables == {"HOME": "/tmp"}
    assert check.entrypoint[:3] == ("python3", "-m", "cmt_perf.gpu.check")


@pytest.mark.parametrize(("text", "message"), [("RUN true\n", "got RUN before FROM"), ("FROM a\nADD b c\n", "got ADD")])
def test_what_is_not_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_dockerfile(tmp_path / "Dockerfile")


def test_a_layer_holds_what_git_knows_of_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nWORKDIR /opt\nCOPY LICENSE ./\nCOPY client client\n")
    (tmp_path / "out" / "debian").mkdir(parents=True)
    image = Image("small", str(tmp_path / "Dockerfile"), 10)
    layer, debian = build(image, tmp_path / "out")
    assert debian.name == "debian"
    assert (layer / "opt" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (layer / "opt" / "client" / "cmt_client" / "__init__.py").is_file()
    assert not list(layer.rglob("__pycache__"))
    assert layer_bytes(layer) == sum(path.stat().st_size for path in layer.rglob("*") if path.is_file())
    assert built(image, tmp_path / "out") == [layer, debian]


def test_an_image_that_was_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cpu isn't built; run `make images`"):
        built(IMAGES["cpu"], tmp_path)


def test_what_outgrows_its_budget_is_found() -> None:
    assert over_budget([TOLD, replace(TOLD, image="gpu", layer_bytes=101)]) == ["gpu"]
