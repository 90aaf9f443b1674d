"""The python backend's stub, which embeds Python: what keeps it from running is said before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cmt_pipeline.constants import PYTHON_STUB
from cmt_server import binary
from cmt_server.binary import find_tritonserver
from cmt_server.errors import ServerError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the wheel's stub, which is used in its place; all else is the wheel's own."""
    wheel = binary._wheel_root()
    root = tmp_path / "lib" / "pytriton" / "tritonserver"
    stub = root / "python_backend_stubs" / VERSION / PYTHON_STUB
    stub.parent.mkdir(parents=True)
    stub.write_bytes((wheel / "python_backend_stubs" / VERSION / PYTHON_STUB).read_bytes())
    stub.chmod(0o755)
    (root / "backends").symlink_to(wheel / "backends")
    (tmp_path / "lib" / "nvidia_pytriton.libs").symlink_to(wheel.parent.parent / "nvidia_pytriton.libs")
    monkeypatch.setattr(binary, "_wheel_root", lambda: root)
    return stub


def test_a_stub_that_runs_is_linked(stub: Path, tmp_path: Path) -> None:
    find_tritonserver(tmp_path / "work")
    assert (tmp_path / "work" / "backends" / "python" / PYTHON_STUB).readlink() == stub


def test_a_stub_that_may_not_be_run_is_copied(stub: Path, tmp_path: Path) -> None:
    """Triton would say "Failed to give execute permission" of a file that isn't its user's."""
    stub.chmod(0o644)
    find_tritonserver(tmp_path / "work")
    linked = (tmp_path / "work" / "backends" / "python" / PYTHON_STUB).resolve()
    assert linked != stub
    assert linked.read_bytes() == stub.read_bytes()
    assert linked.stat().st_mode & 0o777 == 0o755
    assert stub.stat().st_mode & 0o777 == 0o644


def test_a_python_without_its_library_is_named(stub: Path, tmp_path: Path) -> None:
    """As of a Python that was built without --enable-shared: the loader finds no such file."""
    library = f"libpython{VERSION}.so".encode()
    data = stub.read_bytes()
    assert library + b".1.0" in data
    stub.write_bytes(data.replace(library + b".1.0", library + b".9.9"))
    with pytest.raises(ServerError, match=rf"libpython{VERSION}\.so\.9\.9: cannot open .* --enable-shared"):
        find_tritonserver(tmp_path / "work")


def test_a_stub_that_lacks_another_library_says_which(stub: Path, tmp_path: Path) -> None:
    data = stub.read_bytes()
    assert b"libstdc++.so.6\0" in data
    stub.write_bytes(data.replace(b"libstdc++.so.6\0", b"libstdc++.so.9\0"))
    with pytest.raises(ServerError, match=r"libstdc\+\+\.so\.9: cannot open .* see what `ldd "):
        find_tritonserver(tmp_path / "work")


def test_a_stub_that_is_no_program(stub: Path, tmp_path: Path) -> None:
    stub.write_bytes(b"\x7fELF")
    with pytest.raises(ServerError, match="can't be run"):
        find_tritonserver(tmp_path / "work")
