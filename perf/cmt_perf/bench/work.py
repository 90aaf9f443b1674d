"""How much a request asks of a processor, whatever computes it: the share of the peak that a latency stands for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmt_export.checkpoint import load_checkpoint
from cmt_perf.bench.scenarios import SINGLE_STREAM, Scenario
from cmt_perf.traffic import traffic_items
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.preprocess import collate, make_preprocessors


@torch.inference_mode()
def gflop_of(checkpoint: Path, scenario: Scenario = SINGLE_STREAM, seed: int = 0) -> dict[str, float]:
    """10^9 multiplications and additions of a scenario's first request, of each encoder and of `fuse`: matrix products
    and convolutions, padding to buckets included."""
    found = load_checkpoint(checkpoint)
    preprocessors = make_preprocessors(found.config.preprocess, found.tokenizer)
    item = traffic_items(scenario.plan("emotion", "", seed))[0]
    tensors: dict[str, Tensor] = {}
    for m in MODALITIES:
        given = cast(bytes | str, item[m])
        ready = preprocessors[m](given.encode() if isinstance(given, str) else given)
        tensors |= {name: torch.from_numpy(array) for name, array in collate(m, [ready]).items()}
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        found.model.eval()(tensors)
    counted = {name: sum(by.values()) for name, by in counter.get_flop_counts().items()}
    parts = {f"encode_{m}": f"CrossModalTransformer.encoders.{m}" for m in MODALITIES}
    return {
        stage: round(counted.get(name, 0) / 1e9, 3)
        for stage, name in (parts | {"fuse": "CrossModalTransformer.fusion"}).items()
    }
