"""Finds tritonserver and prepares what its python backend needs.

A tritonserver on PATH (the official container) is used as it is. Otherwise the binary comes out of the wheel
nvidia-pytriton, whose python backend lacks only the stub of the running Python in its place.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from cmt_pipeline.constants import PYTHON_STUB
from cmt_server.errors import ServerError
from cmt_server.no_cancel import write_no_cancel

BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
#: Before 24.12 a stub built against NumPy 1 returns empty floats under NumPy 2.
NUMPY_LIMIT = 2


@dataclass(frozen=True)
class TritonBinary:
    """path: of tritonserver; arguments and environment: what it needs beyond the caller's."""

    path: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def find_tritonserver(work: Path) -> TritonBinary:
    """PATH first, else the wheel, whose backend folder is laid out under `work`. Raises ServerError."""
    on_path = shutil.which("tritonserver")
    if on_path:
        return TritonBinary(Path(on_path), environment=_preload(work))
    root = _wheel_root()
    return TritonBinary(
        root / "bin" / "tritonserver",
        ("--backend-directory", str(_lay_out_backends(root, work / "backends"))),
        _stub_environment(root) | _preload(work),
    )


def _preload(work: Path) -> dict[str, str]:
    """What makes a cancelled request harmless, where that is known; see `cmt_server.no_cancel`."""
    library = write_no_cancel(work)
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
    for source in (stub, *(root / "backends" / "python" / name for name in BACKEND_FILES)):
        link = python / source.name
        fresh = link.with_name(f".{link.name}-{os.getpid()}")
        fresh.symlink_to(source)
        fresh.replace(link)
    return folder


def _stub_environment(root: Path) -> dict[str, str]:
    """The stub embeds libpython: it must find this interpreter's, and this environment's packages."""
    library = sysconfig.get_config_var("LIBDIR")
    bundled = root.parent.parent / "nvidia_pytriton.libs"
    paths = [library, str(bundled), os.environ.get("LD_LIBRARY_PATH")]
    return {
        "LD_LIBRARY_PATH": ":".join(p for p in paths if p),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
