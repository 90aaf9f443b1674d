"""The conditions of a measurement, which stand beside every number."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_pipeline.installed import installed_versions
from cmt_pipeline.presets import PRESETS
from cmt_release.release import Release

PACKAGES = ("nvidia-pytriton", "openvino", "onnxruntime", "torch", "numpy", "tritonclient")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")


def conditions(release: Release | None = None, **more: Any) -> dict[str, Any]:
    """Machine, versions, commit, command and load average; of a release its preset, engine and precision."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_features": [name for name in CPU_FEATURES if name in _flags()],
        "load_average": round(os.getloadavg()[0], 2),
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        "python": platform.python_version(),
        "versions": installed_versions(PACKAGES),
    }
    if release is not None:
        info = release.manifest.info
        found["release"] = {name: getattr(info, name) for name in ("preset", "engine", "precision", "trained")}
        if info.preset in PRESETS:
            found["release"]["fusion"] = PRESETS[info.preset].fusion.kind
    return found | more


def to_text(result: Mapping[str, Any]) -> str:
    """JSON that a diff can be read of: a line for each entry, and for each item of a list."""
    lines = []
    for key, value in result.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def _cpu() -> str:
    return next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")


def _flags() -> list[str]:
    return next((line.split(":")[1].split() for line in _cpuinfo() if line.startswith("flags")), [])


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()
