"""Text bytes -> `input_ids`, `attention_mask`, padded up to a bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmt_pipeline.buckets import TEXT_TOKENS, bucket_for
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.tensors import Array


class TextPreprocessor:
    """UTF-8 bytes -> {`input_ids`: [tokens] int64, `attention_mask`: [tokens] int64}. Raises InvalidInput."""

    def __init__(self, tokenizer_json: Path, pad_token: str, limits: Limits = DEFAULT_LIMITS) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # "[SEP]" that somebody typed is text
        pad_id = self._tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(f"{tokenizer_json} has no token {pad_token!r} to pad with")
        self._pad_id = pad_id
        self._limits = limits

    def __call__(self, data: bytes) -> dict[str, Array]:
        encoding = self._tokenizer.encode(decode_text(data, self._limits))
        if all(encoding.special_tokens_mask):
            raise InvalidInput("text", "empty", "got text without a single word; expected at least one")
        count = len(encoding.ids)
        if count > self._limits.max_text_tokens:
            raise InvalidInput(
                "text",
                "too_long",
                f"got {count} tokens; at most {self._limits.max_text_tokens} are accepted: cut it into utterances",
            )
        bucket = bucket_for(count, TEXT_TOKENS)
        input_ids = np.full(bucket, self._pad_id, np.int64)
        input_ids[:count] = encoding.ids
        attention_mask = np.zeros(bucket, np.int64)
        attention_mask[:count] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def decode_text(data: bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    """The text, checked for size, encoding and emptiness. Raises InvalidInput."""
    if len(data) > limits.max_text_bytes:
        raise InvalidInput(
            "text",
            "too_large",
            f"got {len(data)} bytes; at most {limits.max_text_bytes} are accepted: cut it",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "text", "not_utf8", f"got bytes that aren't UTF-8 (at byte {error.start}); expected UTF-8"
        ) from None
    if not text.strip():
        raise InvalidInput("text", "empty", "got empty text; expected at least one word")
    return text
