"""What a stage logs when it fails: the request's id, the error's kind and place, and nothing that was sent."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from cmt_client import InferenceFailed, connect
from cmt_client.operations import Infer
from tiny_triton import TinyServer, write_model

SECRET = "my-diary-of-yesterday"

#: `preprocess` with a bug that quotes what it was given.
MODEL = f"""
import sys
sys.path[:0] = {sys.path}  # Triton's Python ignores PYTHONPATH
from cmt_server.adapters import Entry, PreparePool, PreprocessModel

class TritonPythonModel(PreprocessModel):
    def initialize(self, args):
        self._entry, self._pool = Entry(args, "raw"), PreparePool({{"text": self.broken}}, 1_000_000)

    def broken(self, data):
        raise KeyError(data.decode())
"""

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "text" data_type: TYPE_STRING dims: 1 }
output { name: "input_ids" data_type: TYPE_INT64 dims: -1 }
instance_group { kind: KIND_CPU }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    folder = tmp_path_factory.mktemp("stage_logs")
    write_model(folder / "models", "preprocess", CONFIG)
    (folder / "models" / "preprocess" / "1" / "model.py").write_text(MODEL)
    with TinyServer(folder / "models", folder / "server", ["--log-verbose=0"]) as running:
        yield running


@pytest.mark.parametrize("given", ["order-17", ""])
def test_a_fault_is_logged_without_content(server: TinyServer, given: str) -> None:
    transport = connect(f"grpc://127.0.0.1:{server.ports[1]}")
    before = len(server.log.read_text())
    text = np.array([[SECRET.encode()]], np.object_)
    try:
        with pytest.raises(InferenceFailed, match="KeyError"):
            transport.call(Infer("preprocess", {"text": text}, ("input_ids",), given), 30.0)
    finally:
        transport.close()
    logged = server.log.read_text()[before:]
    assert f"request {given or 'without id'}: KeyError at model.py:" in logged
    assert SECRET not in server.log.read_text()
