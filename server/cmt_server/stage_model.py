"""What every stage's model has to do with Triton's python backend: its configuration, and responses."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from cmt_pipeline.errors import InvalidInput, Overloaded
from cmt_pipeline.stages import STAGES, Stage
from cmt_pipeline.tensors import Array


def opened(args: Mapping[str, str]) -> tuple[Stage, Path, dict[str, str]]:
    """The stage that `initialize` got the arguments of, the folder of its version, and its parameters."""
    config = json.loads(args["model_config"])
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    return STAGES[config["name"]], Path(args["model_repository"]) / args["model_version"], parameters


def response(outcome: Mapping[str, Array] | Exception, request_id: str = "") -> Any:
    """Tensors as they are; the caller's error as INVALID_ARG with field and code; too much at once as UNAVAILABLE with
    a time to come back; anything else is a fault of ours."""
    if isinstance(outcome, InvalidInput):
        return pb.InferenceResponse(error=pb.TritonError(outcome.to_wire(), pb.TritonError.INVALID_ARG))
    if isinstance(outcome, Overloaded):
        return pb.InferenceResponse(error=pb.TritonError(outcome.to_wire(), pb.TritonError.UNAVAILABLE))
    if isinstance(outcome, Exception):
        return _fault(outcome, request_id)
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in outcome.items()])


def _fault(error: Exception, request_id: str) -> Any:
    """INTERNAL with its kind and message. The log has its kind and place alone: messages may quote content."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    pb.Logger.log_error(f"request {request_id or 'without id'}: {type(error).__name__} at {where}")
    return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL))
