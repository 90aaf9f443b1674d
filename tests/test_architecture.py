"""The floors: a package imports from those below it alone, none brings in what it doesn't need, none grows too tall."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Packages from the top floor down -> the packages of this repository that each may import.
MAY_IMPORT = {
    "cmt_cli": {
        "cmt_rollout",
        "cmt_perf",
        "cmt_training",
        "cmt_client",
        "cmt_server",
        "cmt_export",
        "cmt_release",
        "cmt_engine",
        "cmt_pipeline",
    },
    "cmt_rollout": {"cmt_client", "cmt_server", "cmt_export", "cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_perf": {"cmt_training", "cmt_client", "cmt_server", "cmt_export", "cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_training": {"cmt_export", "cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_client": {"cmt_pipeline"},  # it is installed without what a server or an export needs
    "cmt_server": {"cmt_release", "cmt_engine", "cmt_pipeline"},  # what serves needs no export
    "cmt_export": {"cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_release": {"cmt_engine", "cmt_pipeline"},
    "cmt_engine": {"cmt_pipeline"},
    "cmt_pipeline": set[str](),
}
FOLDERS = {
    "cmt_cli": "cmt",
    "cmt_rollout": "k8s",
    "cmt_perf": "perf",
    "cmt_training": "training",
    "cmt_client": "client",
    "cmt_server": "server",
    "cmt_export": "export",
    "cmt_release": "releases",
    "cmt_engine": "engines",
    "cmt_pipeline": "ensembles",
}
HEAVY = (
    "torch",
    "openvino",
    "onnxruntime",
    "transformers",
    "onnx",
    "nncf",
    "tensorrt",
    "tensorrt_rtx",
    "PIL",
    "soundfile",
    "soxr",
    "tokenizers",
)
LONGEST = 500  # lines of a module; see CONTRIBUTING.md for what is usual


def folder_of(package: str) -> Path:
    return ROOT / FOLDERS[package] / package


def modules() -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in folder_of(package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names of all that a module imports, at its head or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module).split(".")[0]


def test_every_package_has_its_floor() -> None:
    found = {path.parent.name for path in ROOT.glob("*/cmt_*/__init__.py")}
    assert found == set(MAY_IMPORT), "name the new package's floor here"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_downwards(package: str) -> None:
    paths = sorted(folder_of(package).rglob("*.py"))
    assert paths
    for path in paths:
        ours = {name for name in imports_of(path) if name in MAY_IMPORT}
        assert ours <= {package} | MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports from a floor above it"


def test_modules_stay_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in modules()}
    assert not {path: length for path, length in lengths.items() if length > LONGEST}


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh Python holds after a statement."""
    paths = [path for path in sys.path if path]
    program = f"import sys; sys.path[:0] = {paths}; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_brings_in_nothing_heavy() -> None:
    """`cmt --help` answers at once, and a client needs neither frameworks nor codecs."""
    loaded = loaded_by(f"import {', '.join(MAY_IMPORT)}, cmt_cli.main")
    assert loaded >= set(MAY_IMPORT)
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "module",
    [
        "cmt_export.export",
        "cmt_release.release",
        "cmt_release.prune",
        "cmt_engine.engine",
        "cmt_pipeline.preprocess",
        "cmt_server.server",
    ],
)
def test_modules_that_start_a_command_stay_light(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)
