"""The fingerprint of preprocessing: it changes with all that decides what bytes become, and with nothing else."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_pipeline.preprocess import LIBRARIES, PreprocessConfig, fingerprint


def test_a_fingerprint_changes_with_all_that_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, config = tmp_path / "tokenizer.json", PreprocessConfig()
    tokenizer.write_text("{}")
    found = [fingerprint(config, tokenizer)]
    assert fingerprint(PreprocessConfig(), tokenizer) == found[0]
    found += [fingerprint(replace(config, normalize_audio=False), tokenizer)]
    (tmp_path / "other.json").write_text("[]")
    found += [fingerprint(config, tmp_path / "other.json")]
    right = importlib.metadata.version
    for library in LIBRARIES:
        with monkeypatch.context() as patched:
            patched.setattr(
                importlib.metadata, "version", lambda name, new=library: "0" if name == new else right(name)
            )
            found.append(fingerprint(config, tokenizer))
    assert len(set(found)) == 3 + len(LIBRARIES)
