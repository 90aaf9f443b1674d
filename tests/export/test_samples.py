"""Generated inputs: what parity is measured on meets every length that a stage may be given."""

from __future__ import annotations

from cmt_export.checkpoint import Checkpoint
from cmt_export.export import PARITY_BATCHES
from cmt_export.samples import batches
from cmt_pipeline.buckets import AUDIO_SAMPLES, TEXT_TOKENS
from cmt_pipeline.preprocess import make_preprocessors


def test_parity_meets_every_bucket(checkpoint: Checkpoint) -> None:
    made = batches(make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer), PARITY_BATCHES)
    assert {batch.tensors["input_values"].shape[1] for batch in made} == set(AUDIO_SAMPLES)
    assert {batch.tensors["input_ids"].shape[1] for batch in made} == set(TEXT_TOKENS)
    assert {batch.size for batch in made} == {1, 2, 3}
