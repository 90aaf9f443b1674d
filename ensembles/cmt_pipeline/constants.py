"""Names and numbers that several packages have to agree on: ports, files, headers, environment variables."""

from __future__ import annotations

#: Triton's usual ports, which `cmt serve` takes too.
HTTP_PORT = 8000
GRPC_PORT = 8001
METRICS_PORT = 8002
GATEWAY_PORT = 8080
LOOPBACK = "127.0.0.1"

#: Files of a Triton model folder; `model.py` lies in its version folders.
TRITON_CONFIG_FILE = "config.pbtxt"
ADAPTER_FILE = "model.py"
LABELS_FILE = "labels.txt"

#: The process that Triton's python backend starts for each instance of a model.
PYTHON_STUB = "triton_python_backend_stub"

#: HTTP header that carries the token of Triton's restricted APIs; as gRPC metadata it has Triton's prefix.
CONTROL_HEADER = "cmt-control"

#: Environment variables.
STATE_VARIABLE = "CMT_STATE"
STORE_VARIABLE = "CMT_STORE"
RELEASE_VARIABLE = "CMT_RELEASE"
TOKEN_VARIABLE = "CMT_CONTROL_TOKEN"  # noqa: S105
LOG_FORMAT_VARIABLE = "CMT_LOG_FORMAT"
LOG_LEVEL_VARIABLE = "CMT_LOG_LEVEL"

MIB = 1024 * 1024
