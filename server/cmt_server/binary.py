"""Finds tritonserver and prepares what its python backend needs.

A tritonserver on PATH (the official container) is used as it is. Otherwise the binary comes out of the wheel
nvidia-pytriton, whose python backend lacks only the stub of the running Python in its place.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from cmt_pipeline.constants import PYTHON_STUB
from cmt_server.advisories import TritonVersion
from cmt_server.errors import ServerError
from cmt_server.preload import write_preload

BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
#: Before 24.12 a stub built against NumPy 1 returns empty floats under NumPy 2.
NUMPY_LIMIT = 2
WHEEL_VERSION = (2, 51)
#: What an official image says of its tritonserver: beside its folder bin, and in the environment.
VERSION_FILE = "TRITON_VERSION"
VERSION_VARIABLE = "TRITON_SERVER_VERSION"
#: What the stub says to one who starts it without arguments.
STUB_ALIVE = "Expected"
CHECK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class TritonBinary:
    """path: of tritonserver; arguments and environment: what it needs beyond the caller's.

    hides: whether `cmt_server.preload.hidden` arguments reach it.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    hides: bool = False


def find_tritonserver(work: Path) -> TritonBinary:
    """PATH first, else the wheel, whose backend folder is laid out under `work`. Raises ServerError, OSError."""
    preload = _preload(work)
    on_path = shutil.which("tritonserver")
    if on_path:
        return TritonBinary(Path(on_path), environment=preload, hides=bool(preload))
    root = _wheel_root()
    environment = _stub_environment(root)
    backends = _lay_out_backends(root, work / "backends")
    _check_stub(backends / "python" / PYTHON_STUB, environment)
    return TritonBinary(
        root / "bin" / "tritonserver",
        ("--backend-directory", str(backends)),
        environment | preload,
        hides=bool(preload),
    )


def tritonserver_version() -> TritonVersion | None:
    """Of the tritonserver that `find_tritonserver` finds, as its image says; None where nothing does."""
    on_path = shutil.which("tritonserver")
    if on_path is None:
        return WHEEL_VERSION
    with contextlib.suppress(OSError, ValueError):
        return triton_version((Path(on_path).resolve().parents[1] / VERSION_FILE).read_text())
    with contextlib.suppress(ValueError):
        return triton_version(os.environ.get(VERSION_VARIABLE, ""))
    return None


def has_backend(name: str) -> bool:
    """Whether the tritonserver that `find_tritonserver` finds has this backend. Raises ServerError without one."""
    on_path = shutil.which("tritonserver")
    root = Path(on_path).resolve().parents[1] if on_path else _wheel_root()
    return (root / "backends" / name).is_dir()


def triton_version(text: str) -> TritonVersion:
    """The first two numbers of a version such as 2.51.0. ValueError if there are none."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(\D|$)", text)
    if match is None:
        raise ValueError(f"Triton version: got {text[:100]!r}; expected one such as 2.51")
    return int(match[1]), int(match[2])


def _preload(work: Path) -> dict[str, str]:
    """The library of `cmt_server.preload`, where the machine's kind is known."""
    library = write_preload(work)
    before = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": f"{library.absolute()} {before or ''}".strip()} if library else {}


def _wheel_root() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("pytriton")
    locations = spec.submodule_search_locations if spec else None
    root = Path(locations[0]) / "tritonserver" if locations else None
    if root is None or not (root / "bin" / "tritonserver").is_file():
        raise ServerError(
            "no tritonserver: none is on PATH and the wheel nvidia-pytriton isn't installed; "
            '`pip install "cmt-triton[serve]"`, or start inside the official Triton container'
        )
    import numpy

    if int(numpy.__version__.split(".")[0]) >= NUMPY_LIMIT:
        raise ServerError(
            f"got NumPy {numpy.__version__}; the python backend of Triton 2.51 returns empty outputs with NumPy 2: "
            '`pip install "numpy<2"`'
        )
    return root


def _lay_out_backends(root: Path, folder: Path) -> Path:
    """backends/python/ with this Python's stub beside the backend's own files."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / PYTHON_STUB
    if not stub.is_file():
        have = ", ".join(sorted(p.name for p in (root / "python_backend_stubs").iterdir()))
        raise ServerError(f"got Python {version}; the wheel's python backend has stubs for {have}")
    python = folder / "python"
    python.mkdir(parents=True, exist_ok=True)
    for source in (
        _runnable(stub, folder.with_name("stub")),
        *(root / "backends" / "python" / name for name in BACKEND_FILES),
    ):
        link = python / source.name
        fresh = link.with_name(f".{link.name}-{secrets.token_hex(6)}")
        fresh.symlink_to(source)
        fresh.replace(link)
    return folder


def _runnable(stub: Path, folder: Path) -> Path:
    """The stub, or a copy that may be run where an installer lost that permission."""
    if os.access(stub, os.X_OK):
        return stub
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / PYTHON_STUB
    draft = copy.with_name(f".{copy.name}-{os.getpid()}")
    shutil.copyfile(stub, draft)
    draft.chmod(0o755)
    return draft.replace(copy)


def _check_stub(stub: Path, environment: dict[str, str]) -> None:
    """Raises ServerError where the stub can't run: Triton would only say that it lacks a permission."""
    try:
        ran = subprocess.run(
            [str(stub)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"the python backend's {PYTHON_STUB} can't be run: {error}") from error
    said = ran.stdout + ran.stderr
    if STUB_ALIVE in said:
        return
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so"
    remedy = (
        f"{sys.executable} was built without {library}: install its package (libpython3.x of a distribution), or use a "
        "Python built with --enable-shared"
        if library in said
        else f"see what `ldd {stub.resolve()}` misses"
    )
    raise ServerError(
        f"the python backend's {PYTHON_STUB} can't be run: {said.strip()[:300] or ran.returncode}; {remedy}"
    )


def _stub_environment(root: Path) -> dict[str, str]:
    """The stub embeds libpython: it must find this interpreter's, and this environment's packages."""
    library = sysconfig.get_config_var("LIBDIR")
    bundled = root.parent.parent / "nvidia_pytriton.libs"
    paths = [library, str(bundled), os.environ.get("LD_LIBRARY_PATH")]
    return {
        "LD_LIBRARY_PATH": ":".join(p for p in paths if p),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
