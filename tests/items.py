"""Random items, and what PyTorch says of them one at a time."""

from __future__ import annotations

import numpy as np

from cmt_client import Emotion, Item
from cmt_export.checkpoint import Checkpoint
from cmt_export.model import run_model
from cmt_export.samples import generated_bytes
from cmt_pipeline.modality import SUBSETS, Modality
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.tensors import Array


def random_items(count: int, seed: int) -> list[dict[Modality, bytes]]:
    """Every subset in turn; sounds of 0.2 to 10 s, a few of them near a bucket's end; sentences of 1 to 4."""
    rng = np.random.default_rng(seed)
    items = []
    for index in range(count):
        seconds = float(rng.choice([rng.uniform(0.2, 4.0), rng.uniform(4.0, 10.0), 1.0, 2.0001, 3.9999]))
        subset = SUBSETS[index % len(SUBSETS)]
        items.append({m: generated_bytes(m, rng, seconds) for m in subset})
    return items


def as_request(item: dict[Modality, bytes]) -> Item:
    """What a caller gives the client: bytes, and text as a string."""
    request: Item = {}
    if "image" in item:
        request["image"] = item["image"]
    if "audio" in item:
        request["audio"] = item["audio"]
    if "text" in item:
        request["text"] = item["text"].decode()
    return request


def as_files(item: Item) -> dict[Modality, bytes]:
    """The reverse: bytes of every modality."""
    return {m: value.encode() if isinstance(value, str) else value for m, value in item.items()}  # type: ignore[attr-defined]


def ready_of(checkpoint: Checkpoint, item: dict[Modality, bytes]) -> dict[str, Array]:
    """The item's ready tensors, a batch of one."""
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    tensors: dict[str, Array] = {}
    for modality, data in item.items():
        tensors |= collate(modality, [preprocessors[modality](data)])
    return tensors


def reference(checkpoint: Checkpoint, item: dict[Modality, bytes]) -> dict[str, Array]:
    """PyTorch fp32's answer to the item alone: name -> [outputs]."""
    return {name: array[0] for name, array in run_model(checkpoint.model, ready_of(checkpoint, item)).items()}


def difference(emotion: Emotion, expected: dict[str, Array]) -> float:
    """The largest absolute difference of a probability, of valence, of arousal."""
    came = [*emotion.probabilities.values(), emotion.valence, emotion.arousal]
    wanted = [*expected["probabilities"].tolist(), *expected["valence_arousal"].tolist()]
    return float(np.abs(np.subtract(came, wanted)).max())
