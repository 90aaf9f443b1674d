"""Which plans this machine can serve, asked of TensorRT's library and of the driver, so that no package is needed.

Triton's tensorrt backend is linked to libnvinfer, and a plan opens in the version that built it alone, on a GPU of the
compute capability that it was built on (NVIDIA's TensorRT documentation, "Version Compatibility"). The fourth number
of a version is that of a build of the same release and isn't compared.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from cmt_engine.gpu import Gpu

#: Newest first. TensorRT for RTX has a library of another name, which Triton doesn't load.
LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10")
#: Functions of NvInferRuntimeBase.h that take nothing and give a number.
PARTS = ("getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion", "getInferLibBuildVersion")
COMPARED = 3

IMAGE_REMEDY = "serve it in the Triton image of that TensorRT (docs/gpu.md)"


def library_version(names: Sequence[str] = LIBRARIES) -> str | None:
    """The version of the TensorRT that the loader finds first, as 10.13.3.9; None where there is none."""
    for name in names:
        try:
            library = ctypes.CDLL(name)
            return ".".join(str(getattr(library, part)()) for part in PARTS)
        except (OSError, AttributeError):  # AttributeError: older than 10
            continue
    return None


def same_version(one: str, other: str) -> bool:
    """Whether a plan of the one opens in the other."""
    return one.split(".")[:COMPARED] == other.split(".")[:COMPARED]


def rtx_fault(versions: Mapping[str, str]) -> str | None:
    """Why no Triton runs plans that these versions built, if they are of TensorRT for RTX."""
    if "tensorrt_rtx" not in versions:
        return None
    return (
        f"its plans are TensorRT for RTX {versions['tensorrt_rtx']}'s, which no backend of Triton runs: export it with "
        "TensorRT on the GPU that will serve, or with --engine openvino"
    )


def plan_faults(
    versions: Mapping[str, str], target: Mapping[str, str], here: str | None, gpus: Sequence[Gpu]
) -> list[str]:
    """Why plans of these versions, built for this target, don't run where TensorRT `here` and these GPUs are."""
    if fault := rtx_fault(versions):
        return [fault]
    built = versions.get("tensorrt")
    faults = []
    if built is None:
        faults.append("it doesn't say which TensorRT built its plans: export it again")
    elif here is None:
        faults.append(f"its plans are TensorRT {built}'s; no TensorRT (libnvinfer) is here: {IMAGE_REMEDY}")
    elif not same_version(built, here):
        faults.append(
            f"its plans are TensorRT {built}'s; TensorRT {here} is here, and a plan opens in its own version alone: "
            f"export it again here, or {IMAGE_REMEDY}"
        )
    wanted = target.get("compute_capability")
    if not gpus:
        faults.append("its plans need a GPU; CUDA shows none here: start the container with --gpus all")
    elif wanted and wanted != gpus[0].compute_capability:
        faults.append(
            f"its plans are for {target.get('gpu', 'a GPU')} (compute capability {wanted}); {gpus[0].name} "
            f"({gpus[0].compute_capability}) is here: export it again here"
        )
    return faults


if __name__ == "__main__":
    if (found := library_version()) is None:
        raise SystemExit("no TensorRT (libnvinfer) is here")
    print(found)
