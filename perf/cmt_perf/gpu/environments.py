"""Two environments out of the archive, beside the PyTorch that a machine has: one builds and measures, one serves.

Runs with nothing but Python. Triton's python backend takes its packages from the environment of the Python that starts
it, whatever PYTHONPATH says; hence environments, not paths.
"""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
ROOMS = ("cmt", "k8s", "perf", "training", "client", "server", "export", "releases", "engines", "sessions", "ensembles")


def make(archive: Path, folder: Path) -> None:
    """folder/build and folder/serve, each with bin/python."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "site", filter="data")
    machine = [path for path in (*site.getsitepackages(), sysconfig.get_path("purelib")) if Path(path).is_dir()]
    common = [str(folder / "site" / "common"), *(str(REPOSITORY / room) for room in ROOMS)]
    for name, first in (("build", []), ("serve", [str(folder / "site" / "serve")])):
        environment = folder / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text("\n".join(dict.fromkeys([*first, *common, *machine])) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
