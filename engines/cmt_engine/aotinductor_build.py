"""torch.export and AOTInductor: a PyTorch module -> a package of machine code and weights."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cmt_engine.engine import EngineError, Precision, Traceable

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: What is computed in the narrow type; sums over many values, norms and softmax stay in fp32.
NARROW = (nn.Linear, nn.Conv1d, nn.Conv2d)
LEAST_CHANNELS = 16  # of a group
COMPILERS = ("g++", "clang++", "c++")


class InPrecision(nn.Module):
    """A module whose matrix products and convolutions are computed in a narrow type, with fp32 inputs and outputs.

    Their weights are stored in it; autocast narrows what comes in and keeps norms, softmax and sums in fp32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.module, self.dtype, self.device = module, dtype, device
        if dtype != torch.float32:
            narrow(module, dtype, device)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        wide = self.dtype == torch.float32
        with torch.autocast(self.device, dtype=self.dtype, enabled=not wide, cache_enabled=False):
            outputs = self.module(*inputs)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)


class Wide(nn.Module):
    """A module that stays in fp32 within a narrow one."""

    def __init__(self, module: nn.Module, device: str) -> None:
        super().__init__()
        self.module, self.device = module, device

    def forward(self, tensor: Tensor) -> Tensor:
        with torch.autocast(self.device, enabled=False):
            wide: Tensor = self.module(tensor.float())
        return wide


def narrow(module: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Stores the weights of a module's products and convolutions in dtype, in place.

    Seen with oneDNN in torch 2.13 on processors with AMX: in bf16 a grouped convolution of fewer than LEAST_CHANNELS
    channels a group gives numbers that have nothing to do with the right ones. On the CPU those stay in fp32.
    """
    for name, part in list(module.named_children()):
        groups = getattr(part, "groups", 1)
        if isinstance(part, NARROW) and device == "cpu" and groups > 1 and part.in_channels // groups < LEAST_CHANNELS:  # type: ignore[operator]
            setattr(module, name, Wide(part, device))
        elif isinstance(part, NARROW):
            part.to(dtype)
        else:
            narrow(part, dtype, device)


def package(traceable: Traceable, precision: Precision, device: Literal["cpu", "cuda"], path: Path) -> None:
    """Compiles for this machine's CPU or GPU into `path`. Raises EngineError."""
    from torch._inductor import aoti_compile_and_package

    if not any(map(shutil.which, COMPILERS)):
        raise EngineError("AOTInductor needs a C++ compiler, and found none: apt-get install g++")
    module = InPrecision(copy.deepcopy(traceable.module).eval().to(device), DTYPES[precision], device)
    inputs = tuple(tensor.to(device) for tensor in traceable.inputs)
    # On the CPU weights are then laid out for oneDNN once; on CUDA AOTInductor takes them as they are.
    settings: dict[str, Any] = {"freezing": True} if device == "cpu" else {}
    with torch.no_grad(), warnings.catch_warnings(), shared_libstdcxx():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, dynamic_shapes=(traceable.dynamic_shapes,), strict=False)
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


@contextlib.contextmanager
def shared_libstdcxx() -> Iterator[None]:
    """While it lasts the compiler links the libstdc++ that PyTorch has loaded, where it would put its own into what it
    makes: two of them in one process end it as a package is loaded.

    Seen on an H100's machine with g++ 13, Python 3.12 and torch 2.11: a compiler without libstdc++.so takes
    libstdc++.a, and says nothing. Raises EngineError where it can't be had otherwise.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    compiler = get_cpp_compiler()
    if not links_statically(compiler):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        asked = subprocess.run([compiler, "-print-multiarch"], capture_output=True, text=True, check=False)
        for place in {Path(folder), Path(folder, asked.stdout.strip())}:  # the latter comes before the compiler's own
            place.mkdir(exist_ok=True)
            (place / "libstdc++.so").symlink_to(_loaded_libstdcxx())
        before = os.environ.get("LIBRARY_PATH")
        os.environ["LIBRARY_PATH"] = ":".join(filter(None, (folder, before)))
        try:
            if links_statically(compiler):
                raise EngineError(
                    f"{compiler} links libstdc++ statically, so that PyTorch can't load what it makes: give it "
                    "libstdc++.so (apt-get install --reinstall libstdc++-$(g++ -dumpversion)-dev)"
                )
            yield
        finally:
            del os.environ["LIBRARY_PATH"]
            os.environ.update({"LIBRARY_PATH": before} if before else {})


def links_statically(compiler: str) -> bool:
    """Whether what a C++ compiler links holds libstdc++ rather than asks for it."""
    with tempfile.TemporaryDirectory() as folder:
        source, linked = Path(folder, "new.cpp"), Path(folder, "new.so")
        source.write_text("int *made() { return new int; }\n")
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", str(source), "-o", str(linked)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EngineError(f"{compiler} can't build a shared library: {done.stderr.strip()[-500:]}")
        return b"libstdc++.so" not in linked.read_bytes()


def _loaded_libstdcxx() -> str:
    """The file that this process has loaded, PyTorch with it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libstdc++.so"):
            return path
    raise EngineError("PyTorch runs without libstdc++.so, so that what AOTInductor makes can't share it")
