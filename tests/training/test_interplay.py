"""What the bench on generated talk shows of cross-attention."""

from __future__ import annotations

import numpy as np
import torch

from cmt_export.fusion import CrossModalLayer
from cmt_pipeline.presets import FusionSize
from cmt_training.examples import Example
from cmt_training.interplay.looks import Look, attention_of, picture_of


def test_the_attention_that_is_shown_is_that_which_answers() -> None:
    torch.manual_seed(0)
    layer = CrossModalLayer(FusionSize(layers=1, heads=4, feed_forward_width=8), 16)
    streams = [torch.randn(2, count, 16) for count in (3, 5, 4)]
    masks = [torch.ones(2, count) for count in (3, 5, 4)]
    masks[1][0, 3:] = 0
    listening, heard = layer.streams[2], layer.streams[1]
    weights = attention_of(layer, streams, masks, own=2, other=1)
    query = listening.project(streams[2]).queries[1]
    keys, values = heard.project(streams[1]).keys_values[1]
    sink = listening.sinks[1]
    wanted = listening._attend(query, keys, values, masks[1], sink)
    rest = 1 - weights.sum(dim=-1, keepdim=True)
    assert not weights[0, :, :, 3:].any()
    assert torch.allclose(weights @ values + rest * sink[1], wanted, atol=1e-6)


def test_what_it_looks_at_is_drawn() -> None:
    example = Example("one", "test", "joy", text="so good", tags={"interplay": "irony"})
    look = Look(example, ("so", "good"), np.full((2, 4), 0.2), ("joy", "anger"), np.ones(4))
    assert picture_of([look, look]).startswith(b"\x89PNG")
