"""The floors: a package imports from those below it alone, none brings in what it doesn't need, none grows too tall."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import rooms
from rooms import FOLDERS, MAY_IMPORT, ROOT, imports_of, modules_of

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


def test_every_package_has_its_floor() -> None:
    found = {path.parent.name for path in ROOT.glob("*/cmt_*/__init__.py")}
    assert found == set(MAY_IMPORT), "name the new package in docs/tools/rooms.py"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_downwards(package: str) -> None:
    assert modules_of(package)
    above = imports_of(package) - MAY_IMPORT[package]
    assert not above, f"{FOLDERS[package]} imports from a floor above it: {above}"


def test_the_house_is_drawn_as_it_is() -> None:
    assert rooms.DRAWING.read_text() == rooms.drawing(), "run `make house`"
    assert rooms.START + rooms.table() + rooms.END in rooms.PAGE.read_text(), "run `make house`"


def module_name(path: Path) -> str:
    parts = path.with_suffix("").relative_to(ROOT).parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_imported_by(path: Path, names: set[str]) -> set[str]:
    """Our modules that a module imports: at its head, later, or for its annotations alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & names
            found |= whole or {str(node.module)}
    return (found & names) - {module_name(path)}


def test_no_module_imports_what_imports_it() -> None:
    paths = {module_name(path): path for package in MAY_IMPORT for path in modules_of(package)}
    graph = {name: modules_imported_by(path, set(paths)) for name, path in paths.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_modules_stay_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for package in MAY_IMPORT for path in modules_of(package)}
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
