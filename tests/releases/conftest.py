"""Stores of releases. S3 is moto's server, an emulation, spoken to over HTTP on this machine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cmt_release.store import Store, open_store


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An emulated S3 with the bucket `bucket`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in the emulated S3, which the environment leads to."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    file_system = fsspec.filesystem("s3", skip_instance_cache=True)
    if not file_system.exists("bucket"):
        file_system.mkdir("bucket")
    return f"s3://bucket/{secrets.token_hex(4)}"


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{secrets.token_hex(4)}"


@pytest.fixture(params=["file", "memory"])
def local_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{secrets.token_hex(4)}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder, `tmp_path/store`."""
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"
