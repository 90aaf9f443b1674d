"""What Triton's python backend runs of the baseline: preprocessing and a whole model in eager PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb

from cmt_export.checkpoint import load_checkpoint
from cmt_export.model import run_model
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.tensors import Array


class MonolithModel:
    """`emotion` in one piece: image, audio and text, each bytes [batch, 1] -> the outputs of the fusion."""

    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"])
        if threads:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(Path(parameters["checkpoint"]["string_value"]))
        self._model = checkpoint.model
        self._preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            outputs = run_model(self._model, self._prepared(request))
        except InvalidInput as error:
            return pb.InferenceResponse(error=pb.TritonError(error.to_wire(), pb.TritonError.INVALID_ARG))
        return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()])

    def _prepared(self, request: Any) -> dict[str, Array]:
        inputs: dict[str, Array] = {}
        for modality in MODALITIES:
            files = pb.get_input_tensor_by_name(request, modality).as_numpy()
            inputs |= collate(modality, [self._preprocessors[modality](data) for data in files[:, 0]])
        return inputs
