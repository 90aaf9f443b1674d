"""What the service accepts, in one place. Every limit has its default here and can be set when serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from cmt_pipeline.buckets import AUDIO_SECONDS, TEXT_TOKENS
from cmt_pipeline.constants import MIB


@dataclass(frozen=True)
class Limits:
    """Limits on one item of each modality, and on all that a server has in hand."""

    max_image_bytes: int = 16 * MIB
    min_image_side_px: int = 16
    max_image_pixels: int = 16_000_000  # of the declared size, before any decoding
    max_audio_bytes: int = 16 * MIB
    min_audio_s: float = 0.1
    max_audio_s: float = float(AUDIO_SECONDS[-1])
    min_sample_rate_hz: int = 4_000
    max_sample_rate_hz: int = 384_000
    max_audio_channels: int = 16
    max_text_bytes: int = 8_192
    max_text_tokens: int = TEXT_TOKENS[-1]
    max_wait_s: float = 0.2  # in all queues; a request that would wait longer is refused at once
    max_held_bytes: int = 128 * MIB  # of files that wait to be prepared
    max_decoding_pixels: int = 16_000_000  # of all images that are being decoded

    def __post_init__(self) -> None:
        """ValueError for a limit that the contract's buckets can't hold."""
        for name, most in (("max_audio_s", AUDIO_SECONDS[-1]), ("max_text_tokens", TEXT_TOKENS[-1])):
            if getattr(self, name) > most:
                raise ValueError(f"{name}: got {getattr(self, name)}; the largest bucket holds {most}")

    def changed(self) -> dict[str, int | float]:
        """Those that aren't the default."""
        return {name: value for name, value in asdict(self).items() if value != getattr(DEFAULT_LIMITS, name)}

    @classmethod
    def from_text(cls, values: Mapping[str, str]) -> Limits:
        """Limits from NAME -> text; names that are no limit are passed over, those not named keep their default."""
        kinds = {f.name: type(getattr(cls, f.name)) for f in fields(cls)}
        return cls(**{name: kinds[name](text) for name, text in values.items() if name in kinds})


DEFAULT_LIMITS = Limits()

#: Items in one request. An ensemble's may not exceed that of any of its stages.
MAX_BATCH_SIZE = 8
#: Items that a GPU engine takes at once; Triton's dynamic batcher fills it from several requests.
MAX_GPU_BATCH_SIZE = 32
