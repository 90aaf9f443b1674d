"""The reference model repository: what lies in git under model_repository/.

A reader sees real Triton configurations there, and a plain tritonserver can load it once artefacts lie in it: sizes
that a release decides are -1, pipelines pin version 1. What is served is a copy that a release is installed into.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from cmt_pipeline.buckets import SAMPLE_RATE_HZ
from cmt_pipeline.constants import ADAPTER_FILE, LABELS_FILE, TRITON_CONFIG_FILE
from cmt_pipeline.labels import DEFAULT_LABEL_SET, labels_of
from cmt_pipeline.limits import Limits
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import FUSE, STAGES, Stage
from cmt_pipeline.tensors import ITEM
from cmt_pipeline.triton_config import (
    REFERENCE,
    VARIANTS_FOLDER,
    WARMUP_FOLDER,
    Served,
    bucket_shapes,
    pipeline_config,
    stage_config,
    tensorrt_config,
    to_pbtxt,
    warmup_file,
)

TENSORRT: Mapping[str, Callable[[Stage, Served], ModelConfig]] = {"tensorrt": tensorrt_config}


def adapter(stage: Stage) -> str:
    """model.py of a stage version: what Triton's python backend loads."""
    kind = {"preprocess": "PreprocessModel", "check": "CheckModel"}.get(stage.kind, "EngineModel")
    return (
        f'"""Triton\'s python backend loads this; the work is in cmt_server.adapters."""\n\n'
        f"from cmt_server.adapters import {kind} as TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n'
    )


def stage_files(
    served: Served = REFERENCE,
    labels: tuple[str, ...] = (),
    variants: Mapping[str, Callable[[Stage, Served], ModelConfig]] = TENSORRT,
) -> dict[str, bytes]:
    """Every file of the stages that isn't an artefact: path -> content. variants: name -> the compiled stages'."""
    files: dict[str, bytes] = {}
    for stage in STAGES.values():
        files[f"{stage.name}/{TRITON_CONFIG_FILE}"] = to_pbtxt(stage_config(stage, served)).encode()
        for name, config in variants.items() if stage.compiled else ():
            files[f"{stage.name}/{VARIANTS_FOLDER}/{name}.pbtxt"] = to_pbtxt(config(stage, served)).encode()
        files |= {
            f"{stage.name}/{WARMUP_FOLDER}/{name}": data for name, data in _warmup_files(stage, served.limits).items()
        }
    files[f"{FUSE.name}/{LABELS_FILE}"] = ("\n".join(labels) + "\n").encode()
    return files


def pipeline_files(served: Served = REFERENCE, prefix: str = "") -> dict[str, bytes]:
    """The configuration of every pipeline, its name behind `prefix`: path -> content."""
    return {
        f"{prefix}{pipeline.name}/{TRITON_CONFIG_FILE}": to_pbtxt(
            pipeline_config(pipeline, served, f"{prefix}{pipeline.name}")
        ).encode()
        for pipeline in PIPELINES.values()
    }


def reference_files() -> dict[str, bytes]:
    """The files of model_repository/ in git: path -> content."""
    files = stage_files(labels=labels_of(DEFAULT_LABEL_SET)) | pipeline_files()
    for stage in STAGES.values():
        files[f"{stage.name}/1/{ADAPTER_FILE}"] = adapter(stage).encode()
    for pipeline in PIPELINES.values():
        files[f"{pipeline.name}/1/.gitkeep"] = b""  # Triton wants a version folder, git wants a file in it
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _warmup_files(stage: Stage, limits: Limits) -> dict[str, bytes]:
    """The files that the stage's warmup samples name, as Triton's `input_data_file` wants them."""
    files = {}
    for shapes in bucket_shapes(stage):
        for spec in stage.inputs:
            name = warmup_file(stage, spec, shapes)
            if name is None:
                continue
            if spec.dtype == "BYTES":
                item = _warmup_item(spec.name, limits)
                files[name] = struct.pack("<I", len(item)) + item  # BYTES: length, then content
            elif spec.axes[0] == ITEM:  # a length: that of the bucket
                files[name] = struct.pack("<q", shapes["input_values"][0])
            else:  # a mask: nothing is padding
                files[name] = struct.pack("<q", 1) * shapes[spec.name][0]
    return files


def _warmup_item(modality: str, limits: Limits) -> bytes:
    """A small file that the limits accept, made without a library."""
    if modality == "image":
        side = max(32, limits.min_image_side_px)
        return b"P6\n%d %d\n255\n" % (side, side) + bytes(3 * side * side)
    if modality == "audio":
        samples = int(2 * limits.min_audio_s * SAMPLE_RATE_HZ)  # of silence, 16-bit PCM
        header = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 36 + 2 * samples, b"WAVEfmt ", 16, 1, 1,
                             SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16, b"data", 2 * samples)  # fmt: skip
        return header + bytes(2 * samples)
    return b"Warming up."


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), reference_files())
