"""Limits: their defaults agree with the contract, and none can be set to what a bucket doesn't hold."""

from __future__ import annotations

from dataclasses import fields

import pytest

from cmt_pipeline.buckets import AUDIO_SECONDS, SAMPLE_RATE_HZ, TEXT_TOKENS, frames_of
from cmt_pipeline.limits import DEFAULT_LIMITS, MAX_BATCH_SIZE, MAX_GPU_BATCH_SIZE, Limits


def test_defaults_reach_the_largest_buckets() -> None:
    assert DEFAULT_LIMITS.max_audio_s == AUDIO_SECONDS[-1]
    assert DEFAULT_LIMITS.max_text_tokens == TEXT_TOKENS[-1]
    assert DEFAULT_LIMITS.max_image_pixels < 12_000 * 12_000
    assert MAX_BATCH_SIZE <= MAX_GPU_BATCH_SIZE


def test_the_shortest_audio_makes_a_frame() -> None:
    assert frames_of(int(DEFAULT_LIMITS.min_audio_s * SAMPLE_RATE_HZ)) >= 1


def test_defaults_have_the_declared_types() -> None:
    """Settings are parsed by the type of the default: `max_audio_s=8.5` needs a float there."""
    for field in fields(Limits):
        assert type(getattr(DEFAULT_LIMITS, field.name)).__name__ == field.type


def test_limits_that_were_changed_round_trip_as_text() -> None:
    limits = Limits(max_audio_s=8.5, max_text_bytes=10)
    assert limits.changed() == {"max_audio_s": 8.5, "max_text_bytes": 10}
    texts = {name: str(value) for name, value in limits.changed().items()}
    assert Limits.from_text(texts | {"threads": "2"}) == limits
    assert Limits.from_text({}) == DEFAULT_LIMITS
    with pytest.raises(ValueError, match="ten"):
        Limits.from_text({"max_text_bytes": "ten"})


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_audio_s": 16.5}, "max_audio_s: got 16.5; the largest bucket holds 16"),
        ({"max_text_tokens": 129}, "max_text_tokens: got 129; the largest bucket holds 128"),
    ],
)
def test_what_no_bucket_holds_is_refused(limit: dict[str, float], message: str) -> None:
    """Else longer audio would be cut without a word."""
    with pytest.raises(ValueError, match=message):
        Limits(**limit)  # type: ignore[arg-type]
