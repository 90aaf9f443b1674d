"""`import cmt_client` stays light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "PIL", "soundfile", "soxr", "openvino", "onnxruntime", "transformers", "tokenizers")
PROTOCOLS = ("grpc", "gevent", "aiohttp", "google.protobuf")


def test_importing_the_client_loads_neither_frameworks_nor_protocols() -> None:
    program = (
        "import sys, cmt_client; cmt_client.EmotionClient('x:1', transport=cmt_client.FakeTransport())"
        ".predict(text='hello');"
        f"print(*[name for name in {HEAVY + PROTOCOLS} if name in sys.modules])"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_a_grpc_transport_loads_no_http_library_and_no_framework() -> None:
    program = (
        "import sys, cmt_client; cmt_client.connect('localhost:1').close();"
        f"print(*[name for name in {(*HEAVY, 'gevent', 'aiohttp')} if name in sys.modules])"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
