"""The baseline: what a team serves first.

The conventional transformer-based fusion (self-attention over the concatenated tokens of the same three encoders) in
eager PyTorch and fp32, in one piece: a single Triton model that decodes, encodes, fuses and answers, one instance, one
request after another. It speaks the contract of the pipeline `emotion`, so that one client asks either.
"""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from cmt_engine.engine import sha256_of
from cmt_export.checkpoint import load_checkpoint
from cmt_export.sources import WEIGHTS_FILE
from cmt_pipeline.constants import ADAPTER_FILE, TRITON_CONFIG_FILE
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.release_info import RELEASE, ReleaseInfo, ReleaseStamp
from cmt_pipeline.triton_config import Served, pipeline_config, to_pbtxt
from cmt_server.server import ServerOptions, TritonServer

NAME = "emotion"
MODEL_FILE = """from cmt_perf.monolith_model import MonolithModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


def monolith_on(checkpoint: Path, folder: Path, threads: int = 0) -> TritonServer:
    """A server, not yet started, of the checkpoint alone, on free ports. threads: of PyTorch, 0 for one a core."""
    write_monolith(checkpoint, folder / "repository", threads)
    options = ServerOptions(
        folder / "repository", folder / "server", http_port=0, grpc_port=0, metrics_port=0, pipelines=(NAME,)
    )
    return TritonServer(options)


def write_monolith(checkpoint: Path, repository: Path, threads: int = 0) -> None:
    """Writes a Triton repository whose one model runs a checkpoint, of whichever fusion."""
    found = load_checkpoint(checkpoint).config
    info = ReleaseInfo(1, found.label_set, found.labels, found.preset, "pytorch", "fp32", found.trained)
    stamp = ReleaseStamp.of(info, sha256_of(checkpoint / WEIGHTS_FILE)).to_json()
    config = pipeline_config(PIPELINES[NAME], Served(labels=len(found.labels), parameters={RELEASE: stamp}))
    config.ClearField("ensemble_scheduling")
    config.ClearField("platform")
    config.backend = "python"
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    for key, value in {"checkpoint": str(checkpoint.absolute()), "threads": str(threads)}.items():
        config.parameters[key].string_value = value
    version = repository / NAME / "1"
    version.mkdir(parents=True)
    (version / ADAPTER_FILE).write_text(MODEL_FILE)
    (repository / NAME / TRITON_CONFIG_FILE).write_text(to_pbtxt(config))
