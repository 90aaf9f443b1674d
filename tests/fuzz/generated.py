"""Inputs that hypothesis makes where damaged bytes would hardly get past the parser: texts, ready tensors, JSON values.

Hypothesis reads each input out of the bytes that the fuzzer gives, so that it lies in a file and can be run again as
any other.
"""

from __future__ import annotations

import copy
import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import PreprocessConfig
from cmt_pipeline.stages import READY
from cmt_pipeline.tensors import Array, TensorSpec
from cmt_server.checks import check_ready_tensors

VOCABULARY = PreprocessConfig().vocabulary
TOO_FEW_BYTES = "no input"
OTHER_DTYPES = ("float16", "float64", "int32", "uint64", "bool", "complex64")
SPECIAL = {"f": (np.nan, np.inf, -np.inf, 3.4e38, -0.0), "i": (-1, 2, VOCABULARY, 2**63 - 1, -(2**63), 16_001)}

Draw = Callable[[st.SearchStrategy[Any]], Any]
Place = tuple[str | int, ...]


def text(run: Callable[[Modality, bytes], str], data: bytes) -> str:
    """Any text that Unicode has, lone surrogates among it."""
    return _run_on(st.text(st.characters(), max_size=400), _encoded(run), data)


@functools.cache
def _encoded(run: Callable[[Modality, bytes], str]) -> Callable[[str], str]:
    return lambda typed: run("text", typed.encode("utf-8", "surrogatepass"))


def tensors(data: bytes) -> str:
    """Ready tensors that hold the contract but for a thing or two."""
    return _run_on(_ready(), _checked, data)


def values(base: Path, run: Callable[[bytes], str], data: bytes) -> str:
    """The JSON of a file, with some of its values replaced, left out, or moved."""
    return _run_on(_changed(base), _as_json(run), data)


@functools.cache
def _as_json(run: Callable[[bytes], str]) -> Callable[[Any], str]:
    return lambda value: run(json.dumps(value).encode("utf-8", "surrogatepass"))


def _run_on(strategy: st.SearchStrategy[Any], run: Callable[[Any], str], data: bytes) -> str:
    """What `run` says of the value that the strategy makes of these bytes."""
    answers: list[str] = []

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def met(value: Any) -> None:
        answers.append(run(value))

    met.hypothesis.fuzz_one_input(data)
    return answers[0] if answers else TOO_FEW_BYTES


@functools.cache
def _ready() -> st.SearchStrategy[dict[str, Array]]:
    @st.composite
    def made(draw: Draw) -> dict[str, Array]:
        batch = draw(st.sampled_from((1, 1, 1, 2, 3, 0)))
        tokens = draw(st.sampled_from(READY["text"][0].axes[0].sizes))
        specs = [spec for m in draw(st.sets(st.sampled_from(MODALITIES), min_size=1)) for spec in READY[m]]
        return {spec.name: _tensor(draw, spec, batch, tokens) for spec in specs}

    return made()


def _tensor(draw: Draw, spec: TensorSpec, batch: int, tokens: int) -> Array:
    sizes = [tokens if a.name == "tokens" else draw(st.sampled_from(a.sizes[:4])) for a in spec.axes]
    shape = [batch, *sizes]
    if draw(st.integers(0, 9)) == 9:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(0, 300))
    if draw(st.integers(0, 19)) == 19:
        shape = draw(st.sampled_from(([], shape[1:], [*shape, 1], shape[:1])))
    random = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    kind = spec.numpy_dtype.kind
    high = 2 if spec.name == "attention_mask" else VOCABULARY
    array: Array = np.asarray(
        random.standard_normal(shape, np.float32) if kind == "f" else random.integers(1, high, shape)
    )
    if array.size and draw(st.integers(0, 3)) == 3:
        array.reshape(-1)[random.integers(array.size)] = draw(st.sampled_from(SPECIAL[kind]))
    with np.errstate(all="ignore"):
        return array.astype(draw(st.sampled_from(OTHER_DTYPES))) if draw(st.integers(0, 19)) == 19 else array


def _checked(inputs: dict[str, Array]) -> str:
    """What the check lets in holds the contract, looked at in another way."""
    check_ready_tensors(inputs, VOCABULARY)
    for spec in (spec for m in MODALITIES for spec in READY[m] if spec.name in inputs):
        array = inputs[spec.name]
        assert array.dtype == spec.numpy_dtype
        assert all(size in axis.sizes for size, axis in zip(array.shape[1:], spec.axes, strict=True))
        assert not np.isnan(array.sum(dtype=np.float64)) if spec.dtype == "FP32" else (array >= 0).all()
    if "input_values" in inputs:
        assert all(0 < count <= inputs["input_values"].shape[1] for count in inputs["num_samples"].flat)
    if "input_ids" in inputs:
        assert set(inputs["attention_mask"].flat) <= {0, 1}
        assert max(inputs["input_ids"].flat) < VOCABULARY
    return "answered"


@functools.cache
def _changed(base: Path) -> st.SearchStrategy[Any]:
    whole = json.loads(base.read_text())
    places = list(_places(whole))

    @st.composite
    def made(draw: Draw) -> Any:
        value = copy.deepcopy(whole)
        for place in draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
            try:
                _change(value, place, draw(_operations(whole, places)))
            except (KeyError, IndexError, TypeError):
                continue  # the change before took the place away
        return value

    return made()


def _places(value: Any, place: Place = ()) -> Any:
    """Where each value in a JSON value lies."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))


@functools.cache
def _odd() -> st.SearchStrategy[Any]:
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    numbers = (0, -1, 1, 255, 65_537, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"))
    words = ("", "..", "/etc/passwd", "a\0b", "x" * 10_000, "vit", "wav2vec2", "bert", "cmt", "late", "relu", "sha256")
    simple = st.sampled_from((None, True, False, [], {}, deep, *numbers, *words)) | st.text(max_size=20) | st.integers()
    return simple | st.lists(simple, max_size=4) | st.dictionaries(st.text(max_size=8), simple, max_size=3)


def _operations(whole: Any, places: list[Place]) -> st.SearchStrategy[Any]:
    """(leave out, add beside, value)."""
    moved = st.sampled_from(places).map(lambda place: functools.reduce(operator.getitem, place, whole))
    return st.tuples(st.sampled_from(("replace", "replace", "leave out", "add")), _odd() | moved.map(copy.deepcopy))


def _change(value: Any, place: Place, operation: tuple[str, Any]) -> None:
    *above, last = place
    parent, (what, new) = functools.reduce(operator.getitem, above, value), operation
    if what == "leave out":
        del parent[last]
    elif what == "add" and isinstance(parent, dict):
        parent[f"{last}_"] = new
    else:
        parent[last] = new
