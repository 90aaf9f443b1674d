"""Which TensorRT is taken and what it calls back. Fakes stand for flavours, versions and drivers not here."""

from __future__ import annotations

import ctypes
import enum
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmt_engine.engine import EngineError
from cmt_engine.gpu import Gpu, find_gpus
from cmt_engine.tensorrt_build import set_targets, use_timing_cache
from cmt_engine.tensorrt_module import BuildProgress, TensorRt, load_tensorrt, network_flags

L4 = Gpu("NVIDIA L4", "8.9")


def no_gpus() -> tuple[Gpu, ...]:
    return ()


def finder(**modules: Any) -> Any:
    """Finds only these modules."""
    return modules.get


@pytest.mark.parametrize(
    ("flavour", "modules", "gpus", "chosen"),
    [
        ("auto", ("tensorrt", "tensorrt_rtx"), (L4,), "tensorrt"),
        ("auto", ("tensorrt", "tensorrt_rtx"), (), "tensorrt_rtx"),
        ("auto", ("tensorrt_rtx",), (L4,), "tensorrt_rtx"),
        ("tensorrt", ("tensorrt", "tensorrt_rtx"), (L4,), "tensorrt"),
        ("tensorrt_rtx", ("tensorrt", "tensorrt_rtx"), (L4,), "tensorrt_rtx"),
    ],
)
def test_the_flavour_is_chosen(flavour: Any, modules: tuple[str, ...], gpus: Any, chosen: str) -> None:
    found = {name: SimpleNamespace(__version__="11.0.0.1") for name in modules}
    tensorrt = load_tensorrt(flavour, finder(**found), lambda: gpus)
    assert tensorrt.name == chosen
    assert tensorrt.gpu == (L4 if chosen == "tensorrt" else None)


@pytest.mark.parametrize(
    ("flavour", "parts"),
    [
        ("tensorrt", ['pip install "cmt-triton[tensorrt]"']),
        ("tensorrt_rtx", ['pip install "cmt-triton[tensorrt-rtx]"']),
        ("auto", ['"cmt-triton[tensorrt]"', '"cmt-triton[tensorrt-rtx]"']),
    ],
)
def test_where_it_isnt_installed_the_pip_line_is_told(flavour: Any, parts: list[str]) -> None:
    with pytest.raises(EngineError) as caught:
        load_tensorrt(flavour, finder(), no_gpus)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("flavour", ["auto", "tensorrt"])
def test_tensorrt_without_a_gpu_says_so(flavour: Any) -> None:
    with pytest.raises(EngineError, match=r"10\.13\.3 is here, but CUDA shows no GPU"):
        load_tensorrt(flavour, finder(tensorrt=SimpleNamespace(__version__="10.13.3")), no_gpus)


def test_an_old_tensorrt_is_refused() -> None:
    with pytest.raises(EngineError, match=r"got TensorRT 8\.6\.1, expected 10 or later"):
        load_tensorrt("auto", finder(tensorrt=SimpleNamespace(__version__="8.6.1")), lambda: (L4,))


def test_targets_are_for_rtx_alone() -> None:
    with pytest.raises(EngineError, match=r"got compute capabilities 8\.9; TensorRT builds for the GPU it runs on"):
        set_targets(TensorRt(SimpleNamespace(), rtx=False, gpu=L4), SimpleNamespace(), ("8.9",))


def test_networks_are_strongly_typed_in_every_version() -> None:
    class Ten(enum.IntEnum):  # explicit batch came first in TensorRT 10
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class Eleven(enum.IntEnum):
        STRONGLY_TYPED = 0

    class Later(enum.IntEnum):
        OTHER = 0

    flags = [network_flags(SimpleNamespace(NetworkDefinitionCreationFlag=version)) for version in (Ten, Eleven, Later)]
    assert flags == [2, 1, 0]


class FakeConfig:
    """IBuilderConfig's part in timing caches: damaged ones can't be read, foreign ones aren't taken."""

    used: bytes | None = None

    def create_timing_cache(self, kept: bytes) -> bytes | None:
        return None if kept == b"damaged" else kept

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache == b"of another gpu":
            return False
        self.used = cache
        return True


@pytest.mark.parametrize(
    ("kept", "used"),
    [(b"timings", b"timings"), (b"damaged", b""), (b"of another gpu", b""), (None, b"")],
)
def test_a_timing_cache_that_doesnt_fit_is_left(kept: bytes | None, used: bytes, tmp_path: Path) -> None:
    config, path = FakeConfig(), tmp_path / "timing.cache"
    if kept is not None:
        path.write_bytes(kept)
    use_timing_cache(config, path)
    assert config.used == used


def test_nested_phases_make_one_fraction() -> None:
    told: list[tuple[str, float]] = []
    progress = BuildProgress(lambda phase, part: told.append((phase, part)))
    progress.start("outer", 2)
    progress.start("inner", 4)
    assert progress.step("inner", 1)
    progress.finish("inner")
    assert progress.step("outer", 0)
    progress.start("empty", 0)
    progress.end()
    assert told == [
        ("outer", 0.0),
        ("inner", 0.0),
        ("inner", 0.25),
        ("outer", 0.5),
        ("empty", 0.5),
        ("Built", 1.0),
    ]


class FakeDriver:
    """libcuda with one GPU, or one that can't start."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0


def test_gpus_are_asked_of_the_driver() -> None:
    assert find_gpus(FakeDriver()) == (L4,)
    assert find_gpus(FakeDriver(status=100)) == ()  # CUDA_ERROR_NO_DEVICE


@pytest.mark.long
def test_tensorrt_is_imported_by_a_build_alone() -> None:
    source = (
        "import sys; sys.path[:0] = sys.argv[1:]; import cmt_engine.tensorrt_build\n"
        "assert not [name for name in sys.modules if name.startswith('tensorrt')]"
    )
    subprocess.run([sys.executable, "-c", source, *sys.path], check=True)
