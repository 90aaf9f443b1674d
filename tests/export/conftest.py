"""The mini model's ONNX files and inputs to compare by, made once a session; stores of releases.

S3 is moto's server, an emulation, spoken to over HTTP on this machine.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import fsspec
import pytest
import torch

from cmt_cli.state import State
from cmt_export.checkpoint import Checkpoint
from cmt_export.engine import Precision
from cmt_export.export import PARITY_BATCHES, ExportOptions, _onnx_key
from cmt_export.onnx_from_checkpoint import MODEL_FILE, onnx_from_checkpoint
from cmt_export.release import Release
from cmt_export.samples import Batch, batches
from cmt_export.store import Store, open_store
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import COMPILED_STAGES


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models gain nothing from a second thread, and lose much when another process wants its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def graph_store(
    release_of: Callable[[Precision], Release],
    state: State,
    recipe: ExportOptions,
    checkpoint: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A store of releases without a release, but with the ONNX files that an export of the mini preset keeps there."""
    store = tmp_path_factory.mktemp("graphs")
    release_of("fp32")
    cache = Path(".onnx") / _onnx_key(recipe)
    for stage in COMPILED_STAGES:
        kept, target = state.releases / cache / stage.name, store / cache / stage.name
        if kept.is_dir():
            shutil.copytree(kept, target)
        else:  # another export has taken the cache meanwhile
            onnx_from_checkpoint(checkpoint.model, stage, target)
    return store


@pytest.fixture(scope="session")
def graphs(graph_store: Path) -> Mapping[str, Path]:
    """The ONNX file of each compiled stage of the mini model."""
    return {path.parent.name: path for path in graph_store.glob(f".onnx/*/*/{MODEL_FILE}")}


@pytest.fixture(scope="session")
def compared(checkpoint: Checkpoint) -> Sequence[Batch]:
    """What an export compares engines by: batches of 1 to 3 items, one for each audio bucket."""
    return batches(make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer), PARITY_BATCHES)


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
