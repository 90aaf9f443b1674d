"""Stages that were made elsewhere: a folder of ONNX files, and the few things that they don't say of themselves.

    encode_image.onnx, encode_audio.onnx, encode_text.onnx, fuse.onnx    with their weights beside them
    tokenizer.json
    model.toml

model.toml:

    name = "my-own"                          # of the model; travels with every answer
    labels = ["calm", "angry", "sad"]        # in the order of the logits
    label_set = "moods"                      # its name; without one, the labels joined by commas
    [preprocess]                             # what differs from PreprocessConfig's defaults
    image_mean = [0.485, 0.456, 0.406]
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from cmt_engine.engine import ENGINES, Runner, keep
from cmt_export.onnx_checks import first_line, graph_faults
from cmt_export.onnx_completion import MODEL_FILE, completed, declare_sizes, outputs_made_up
from cmt_export.onnx_trial import tried
from cmt_export.samples import batches
from cmt_pipeline.labels import SEPARATOR, checked_labels
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import TOKENIZER_FILE, PreprocessConfig, make_preprocessors
from cmt_pipeline.stages import COMPILED_STAGES, Stage, sized
from cmt_pipeline.tensors import Array, Arrays, Sizes
from cmt_release.typed_json import typed

Made = TypeVar("Made")

DESCRIPTION_FILE = "model.toml"
KEYS = {"name", "labels", "label_set", "trained", "preprocess"}
SHOWN = "docs/own-model.md shows one"


class OnnxFolderError(ValueError):
    """A folder of graphs that can't be exported; `faults` are all that were found."""

    def __init__(self, folder: Path, faults: Sequence[str]) -> None:
        listed = "\n".join(f"- {fault}" for fault in faults)
        super().__init__(f"{folder} can't be exported, for {len(faults)} reasons:\n{listed}")
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Description:
    """model.toml, and what follows from the tokenizer."""

    preset: str
    label_set: str
    labels: tuple[str, ...]
    preprocess: PreprocessConfig
    trained: bool


@dataclass(frozen=True)
class GivenModel:
    """The graphs in ONNX Runtime: what their engines are held against."""

    runners: dict[str, Runner]
    sizes: Sizes
    modalities: tuple[Modality, ...] = MODALITIES
    reads_valence_arousal: bool = True

    def run_stage(self, stage: Stage, inputs: Arrays) -> dict[str, Array]:
        outputs = self.runners[stage.name].run({spec.name: inputs[spec.name] for spec in stage.inputs})
        # ONNX Runtime's int64 is C's `long long`, which OpenVINO doesn't take for one
        return {spec.name: outputs[spec.name].astype(spec.numpy_dtype) for spec in stage.outputs}


@dataclass(frozen=True)
class OnnxFolder:
    """What an export takes from a folder of graphs."""

    config: Description
    model: GivenModel
    tokenizer: Path


def open_onnx_folder(folder: Path, graphs: Path, batch_sizes: Sequence[int]) -> OnnxFolder:
    """Checks the folder, and writes its graphs, completed, to `graphs`/{stage}/model.onnx. Raises OnnxFolderError.

    batch_sizes: of the samples that the graphs are tried on, one for each audio bucket.
    """
    description, faults = read_description(folder)
    labels = len(description.labels) if description else None
    found = {s: graph_faults(folder / f"{s.name}.onnx", s, labels, outputs_made_up(s)) for s in COMPILED_STAGES}
    faults += [fault for of_stage in found.values() for fault in of_stage]
    runners: dict[str, Runner] = {}
    for stage in (stage for stage, of_stage in found.items() if not of_stage):
        try:
            runners[stage.name] = _opened(folder, stage, graphs)
        except Exception as error:  # of onnx and its runtime many kinds
            faults.append(f"{stage.name}.onnx: doesn't open: {first_line(error)}")
    if description and labels:
        preprocessors = make_preprocessors(description.preprocess, folder / TOKENIZER_FILE)
        trial = tried(runners, batches(preprocessors, batch_sizes), labels, description.preprocess.vocabulary)
        faults += trial.faults
    if faults or not description:
        for stage in COMPILED_STAGES:
            shutil.rmtree(graphs / stage.name, ignore_errors=True)
        raise OnnxFolderError(folder, faults)
    for stage in COMPILED_STAGES:
        declare_sizes(graphs / stage.name / MODEL_FILE, sized(stage, trial.sizes), len(description.labels))
    return OnnxFolder(description, GivenModel(runners, trial.sizes), folder / TOKENIZER_FILE)


def read_description(folder: Path) -> tuple[Description | None, list[str]]:
    """model.toml with the tokenizer beside it, or each fault of them."""
    values, tokens = _read_toml(folder / DESCRIPTION_FILE), _vocabulary(folder / TOKENIZER_FILE)
    faults = [fault for fault in (values, tokens) if isinstance(fault, str)]
    if isinstance(values, str) or isinstance(tokens, str):
        return None, faults

    def checked(make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except ValueError as error:
            faults.append(f"{DESCRIPTION_FILE}: {error}; {SHOWN}")
            return None

    if unknown := sorted(values.keys() - KEYS):
        faults.append(f"{DESCRIPTION_FILE}: got {', '.join(unknown)}; expected some of {', '.join(sorted(KEYS))}")
    labels = checked(lambda: checked_labels(typed(tuple[str, ...], values.get("labels", []), "labels")))
    name = checked(lambda: typed(str, values.get("name", folder.resolve().name), "name"))
    label_set = checked(lambda: typed(str, values.get("label_set", SEPARATOR.join(labels or "?")), "label_set"))
    trained = checked(lambda: typed(bool, values.get("trained", True), "trained"))
    preprocess = checked(lambda: _preprocess(values.get("preprocess", {}), folder / TOKENIZER_FILE, tokens))
    if not (name and labels and label_set and preprocess) or faults:
        return None, faults
    return Description(name, label_set, labels, preprocess, bool(trained)), []


def _read_toml(path: Path) -> dict[str, Any] | str:
    import tomllib  # type: ignore[import-not-found]  # Python 3.11, as all that makes models

    try:
        values: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return f"{DESCRIPTION_FILE}: can't be read ({error}); {SHOWN}"
    return values


def _preprocess(values: Any, tokenizer: Path, tokens: int) -> PreprocessConfig:
    """ValueError for values that there are none of, or that nothing can be prepared by."""
    if not isinstance(values, dict):
        raise ValueError(f"preprocess: got {values!r}; expected a table")
    defaults = json.loads(json.dumps(asdict(PreprocessConfig(vocabulary=tokens))))
    fit = values.get("image_fit", {})
    filled = {**defaults, **values, "image_fit": {**defaults["image_fit"], **fit} if isinstance(fit, dict) else fit}
    config = typed(PreprocessConfig, filled, "preprocess")
    make_preprocessors(config, tokenizer)
    return config


def _vocabulary(tokenizer: Path) -> int | str:
    """How many tokens there are, or what is wrong."""
    from tokenizers import Tokenizer

    if not tokenizer.is_file():
        return f"{TOKENIZER_FILE} is missing: put the one there that the text encoder was trained with"
    try:
        return int(Tokenizer.from_file(str(tokenizer)).get_vocab_size())
    except Exception as error:  # of the library, without a kind of its own
        return f"{TOKENIZER_FILE}: can't be read ({error}); save it again (tokenizer.save_pretrained)"


def _opened(folder: Path, stage: Stage, graphs: Path) -> Runner:
    draft = graphs / f".{stage.name}-{secrets.token_hex(6)}"
    completed(folder / f"{stage.name}.onnx", stage, draft)
    keep(draft, graphs / stage.name)
    return ENGINES["onnxruntime"].open(graphs / stage.name / MODEL_FILE, "fp32", 0)
