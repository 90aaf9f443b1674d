"""The NVIDIA GPUs of this machine, asked of the driver itself (libcuda), so that no package is needed."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"

# CUdevice_attribute in cuda.h
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """name: as the driver says it; compute_capability: `8.9`."""

    name: str
    compute_capability: str


def find_gpus(driver: Any = None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process (CUDA_VISIBLE_DEVICES holds); none where no driver is.

    driver: libcuda, or what stands for it.
    """
    try:
        cuda = driver or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_gpu(cuda, index) for index in range(count.value))


def _gpu(cuda: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def see_one_gpu(index: int) -> None:
    """Shows this process one GPU alone, before CUDA is initialised. index: among those that it sees by now."""
    visible = os.environ.get(VISIBLE, "").split(",")
    os.environ[VISIBLE] = visible[index] if visible != [""] else str(index)
