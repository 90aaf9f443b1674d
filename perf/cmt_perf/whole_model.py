"""A checkpoint as a team runs it: preprocessing and model in one process, one batch after another."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from cmt_export.checkpoint import load_checkpoint
from cmt_perf.peers.runtimes import Runtime, run_of
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.tensors import Array


class WholeModel:
    """threads: of PyTorch, 0 for one a core. Calls from several threads take turns: together they'd only be slower."""

    def __init__(self, checkpoint: Path, threads: int = 0, runtime: Runtime = "eager") -> None:
        if threads:
            torch.set_num_threads(threads)
        found = load_checkpoint(checkpoint)
        self._run = run_of(found, checkpoint, runtime)
        self._preprocessors = make_preprocessors(found.config.preprocess, found.tokenizer)
        self._turn = threading.Lock()

    def answer(self, files: Mapping[Modality, list[bytes]]) -> dict[str, Array]:
        """Files of a batch by modality -> the outputs of the fusion. InvalidInput for a file that isn't accepted."""
        inputs: dict[str, Array] = {}
        for modality, batch in files.items():
            inputs |= collate(modality, [self._preprocessors[modality](data) for data in batch])
        with self._turn:
            return self._run(inputs)
