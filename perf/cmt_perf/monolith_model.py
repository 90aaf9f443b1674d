"""What Triton's python backend runs of the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cmt_perf.whole_model import WholeModel
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.release_info import RELEASE
from cmt_pipeline.stages import FACE


class MonolithModel:
    """`emotion` in one piece: image, audio and text, each bytes [batch, 1] -> the outputs of the fusion."""

    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: parameter["string_value"] for name, parameter in parameters.items()}
        self._release = values[RELEASE].encode()
        self._model = WholeModel(Path(values["checkpoint"]), int(values["threads"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        files = {m: list(pb.get_input_tensor_by_name(request, m).as_numpy()[:, 0]) for m in MODALITIES}
        try:
            outputs = self._model.answer(files)
        except InvalidInput as error:
            return pb.InferenceResponse(error=pb.TritonError(error.to_wire(), pb.TritonError.INVALID_ARG))
        outputs[FACE.name] = np.full((len(files["text"]), 1), b"", np.object_)
        outputs[RELEASE] = np.full((len(files["text"]), 1), self._release, np.object_)
        return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()])
