"""Test splits of a generated corpus with one disturbance at a time, for robustness curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from cmt_pipeline.progress import Progress
from cmt_release.locks import make_once
from cmt_training.data.generated import CORPUS_FILE
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions, Variation, test_variation

LEVELS = (0.0, 0.33, 0.67, 1.0)
MOST_ITEMS = 2_000  # of a whole corpus, so of test items a fifth: enough for a curve


def disturbed_corpora(
    corpus: Path, made: Path, progress: Progress, levels: Sequence[float] = LEVELS
) -> dict[str, list[tuple[float, Path]]]:
    """Disturbance -> (level, folder of a corpus) each; nothing for data that wasn't generated.

    corpus: whose people and sentences they have; made: where they are kept from one evaluation to the next.
    """
    if not (corpus / CORPUS_FILE).is_file():
        return {}
    options = options_of(corpus)
    options = replace(options, items=min(options.items, MOST_ITEMS))
    variations: tuple[Variation, ...] = get_args(Variation)
    return {
        variation: [
            (level, _generated(made, test_variation(options, variation, level), variation, progress))
            for level in levels
        ]
        for variation in variations
    }


def options_of(corpus: Path) -> CorpusOptions:
    """What a corpus was made with."""
    values: dict[str, Any] = json.loads((corpus / CORPUS_FILE).read_text())["options"]
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return CorpusOptions(**chosen)


def _generated(made: Path, options: CorpusOptions, variation: str, progress: Progress) -> Path:
    """Level 0 of every disturbance is the same corpus."""
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode()).hexdigest()[:12]
    folder = made / f"test-{digest}"

    def told(what: str, done: float) -> None:
        progress(f"corpus with {variation}: {what}", done)

    make_once(folder, lambda draft: generate_corpus(draft, options, told))
    return folder
