"""Which plans run where: versions read from TensorRT for RTX's own library, whose functions TensorRT's has too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cmt_engine.engine import ENGINES
from cmt_engine.gpu import Gpu
from cmt_engine.tensorrt_library import LIBRARIES, library_version, plan_faults, same_version
from small_graphs import needs_rtx

L40S, H100 = Gpu("NVIDIA L40S", "8.9"), Gpu("NVIDIA H100 80GB HBM3", "9.0")
BUILT = {"tensorrt": "10.13.3.9", "torch": "2.13.0"}
TARGET = {"gpu": "NVIDIA L40S", "compute_capability": "8.9"}


@needs_rtx
def test_a_librarys_version_is_that_of_its_package() -> None:
    import tensorrt_rtx

    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (library,) = Path(spec.submodule_search_locations[0]).glob("libtensorrt_rtx.so.*")
    assert library_version(["libnvinfer.so.0", str(library)]) == tensorrt_rtx.__version__


def test_a_library_that_isnt_there_or_isnt_tensorrt_has_no_version() -> None:
    assert library_version(["libnvinfer.so.0"]) is None
    assert library_version(["libc.so.6"]) is None


def test_rtx_has_a_library_of_another_name() -> None:
    assert all(name.startswith("libnvinfer.so.") for name in LIBRARIES)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.13.3.9", "10.13.3.9", True),
        ("10.13.3.9", "10.13.3", True),
        ("10.13.3.9", "10.13.2.6", False),
        ("10.13.3.9", "11.0.0.1", False),
        ("11.1.0.106", "11.10.0.106", False),
    ],
)
def test_versions(one: str, other: str, same: bool) -> None:
    assert same_version(one, other) is same


@pytest.mark.parametrize(
    ("versions", "here", "gpus", "said"),
    [
        (BUILT, "10.13.3.9", (L40S,), []),
        (
            BUILT,
            None,
            (L40S,),
            ["TensorRT 10.13.3.9's; no TensorRT (libnvinfer) is here: serve it in"],
        ),
        (BUILT, "11.1.0.106", (L40S,), ["TensorRT 10.13.3.9's; TensorRT 11.1.0.106 is here", "export it again"]),
        (BUILT, "10.13.3.9", (), ["CUDA shows none here: start the container with --gpus all"]),
        (
            BUILT,
            "10.13.3.9",
            (H100,),
            ["NVIDIA L40S (compute capability 8.9); NVIDIA H100 80GB HBM3 (9.0) is here"],
        ),
        ({"torch": "2"}, "10.13.3.9", (L40S,), ["doesn't say which TensorRT"]),
        (
            {"tensorrt_rtx": "1.7.1.116"},
            "10.13.3.9",
            (L40S,),
            ["TensorRT for RTX 1.7.1.116's, which no backend"],
        ),
    ],
)
def test_what_doesnt_run_here_is_told(
    versions: dict[str, str], here: str | None, gpus: tuple[Gpu, ...], said: list[str]
) -> None:
    told = "; ".join(plan_faults(versions, TARGET, here, gpus))
    assert bool(told) is bool(said)
    assert all(part in told for part in said), told


def test_only_plans_of_rtx_are_never_served() -> None:
    assert ENGINES["tensorrt"].never_served({"tensorrt": "10.13.3.9"}) == []
    (fault,) = ENGINES["tensorrt"].never_served({"tensorrt_rtx": "1.7.1.116"})
    assert "export it with TensorRT on the GPU that will serve" in fault
    assert ENGINES["openvino"].never_served({"openvino": "1"}) == []
