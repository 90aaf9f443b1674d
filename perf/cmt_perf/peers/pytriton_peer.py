"""PyTriton: a Python function bound to a Triton of its own (triton-inference-server.github.io/pytriton)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from cmt_perf.load_clients import TENSORS_MODEL
from cmt_perf.whole_model import WholeModel
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.tensors import Array

MAX_BATCH_SIZE = 8


def serve(model: WholeModel, http_port: int, grpc_port: int) -> None:
    @batch
    def answer(image: Array, audio: Array, text: Array) -> dict[str, Array]:
        outputs = model.answer(
            {m: list(files[:, 0]) for m, files in zip(MODALITIES, (image, audio, text), strict=True)}
        )
        return {"probabilities": outputs["probabilities"]}

    addresses = {"http_address": "127.0.0.1", "grpc_address": "127.0.0.1", "allow_metrics": False}
    config = TritonConfig(http_port=http_port, grpc_port=grpc_port, **addresses)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=TENSORS_MODEL,
            infer_func=answer,
            inputs=[Tensor(name=m, dtype=bytes, shape=(1,)) for m in MODALITIES],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=MAX_BATCH_SIZE),
        )
        triton.serve()


if __name__ == "__main__":
    checkpoint, runtime, *ports = sys.argv[1:]
    serve(WholeModel(Path(checkpoint), runtime=runtime), *map(int, ports))  # type: ignore[arg-type]
