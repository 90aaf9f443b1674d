"""What a GPU's figures stand beside: its name and driver, and which TensorRT and Triton are here."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from typing import Any

from cmt_engine.gpu import find_gpus
from cmt_engine.tensorrt_library import library_version
from cmt_pipeline import __version__
from cmt_pipeline.installed import installed_versions
from cmt_server.binary import tritonserver_version

PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13", "torch", "onnx", "tritonclient", "numpy")
IMAGE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"  # of NVIDIA's images, such as 26.09
DRIVER_QUESTION = "name,driver_version,memory.total,compute_cap"
TIMEOUT_S = 30.0


def gpu_machine() -> dict[str, Any]:
    """GPUs as CUDA shows them, what nvidia-smi says, and versions; None or nothing for what isn't here."""
    triton = tritonserver_version()
    return {
        "gpus": [{"name": gpu.name, "compute_capability": gpu.compute_capability} for gpu in find_gpus()],
        "nvidia_smi": nvidia_smi(DRIVER_QUESTION),
        "tensorrt": library_version(),
        "triton": ".".join(map(str, triton)) if triton else None,
        "tritonserver": shutil.which("tritonserver"),
        "triton_image": os.environ.get(IMAGE_VARIABLE),
        "cores": len(os.sched_getaffinity(0)),
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        "python": platform.python_version(),
        "versions": {"cmt-triton": __version__, **installed_versions(PACKAGES)},
    }


def nvidia_smi(question: str) -> list[str]:
    """A line for each GPU with what is asked, as `name,driver_version`; none where there is no driver."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = ["nvidia-smi", f"--query-gpu={question}", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S)
        return said.stdout.splitlines() if said.returncode == 0 else []
    return []
