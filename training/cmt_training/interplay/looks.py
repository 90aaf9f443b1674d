"""What cross-attention looks at on a few test items, and what its answer is made of, as the bytes of a PNG.

Of each kind of interplay the first item that has all three modalities, that cross-attention answers right and
log-linear late fusion doesn't: chosen to show how it works where it works, not how often.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from cmt_export.fusion import OTHERS, CrossModalLayer, CrossModalStream
from cmt_pipeline.modality import MODALITIES
from cmt_training.binding.family import Items
from cmt_training.compare.learn import Net
from cmt_training.compare.run import Place, answered, trained
from cmt_training.compare.tokens import FRAMES, Indices, Tokens
from cmt_training.data.generated import load_generated
from cmt_training.examples import Example
from cmt_training.generate.interplay import KINDS
from cmt_training.metrics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 90
FRAME_S = 0.02
AUDIO, TEXT = MODALITIES.index("audio"), MODALITIES.index("text")
PARTS = (*MODALITIES, "interaction")


@dataclass(frozen=True)
class Look:
    """One item. attention [words, sounds]: how each word looks at the sound, rows add up to 1 with the sink; labels:
    the true one, the likeliest other by the sum of evidence; parts [4]: how far each modality and the interaction
    speak for the first rather than the second, in nats."""

    example: Example
    words: tuple[str, ...]
    attention: Floats
    labels: tuple[str, str]
    parts: Floats


def looks_of(place: Place, corpus: Path, tokenizer: Path, seed: int) -> list[Look]:
    """One of each kind of interplay, where there is one."""
    tokens = place.tokens()
    (ours,), (late,) = (trained(model, tokens, place, [seed]) for model in ("cross-attention", "late"))
    rows = tokens.of("test")
    labels = tokens.labels[rows]
    right = answered(ours, tokens)["cross-attention"].probabilities[""].argmax(axis=1) == labels
    wrong = answered(late, tokens)["log-linear"].probabilities[""].argmax(axis=1) != labels
    chosen = rows[right & wrong & (tokens.counts[rows].min(axis=1) > 0)]
    examples = load_generated(corpus).examples
    if len(examples) != len(tokens.labels):
        raise ValueError(
            f"got {len(examples)} examples of {len(tokens.labels)} items' tokens; expected as many: make them again"
        )
    net = place.net(ours, len(tokens.names))
    first = [found[0] for kind in KINDS if len(found := chosen[tokens.kinds[chosen] == kind])]
    return [_look(net, tokens, np.array([row]), examples[row], tokenizer) for row in first]


@torch.inference_mode()
def _look(net: Net, tokens: Tokens, row: Indices, example: Example, tokenizer: Path) -> Look:
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(tokenizer))
    words.no_padding()
    items = tokens.items(row)
    kept: list[tuple[list[Tensor], list[Tensor]]] = []
    layer = cast(CrossModalLayer, net.cross_modal.layers[0])
    hook = layer.register_forward_pre_hook(lambda _, given: kept.append(given))
    logits, separate = net.taught(items)
    hook.remove()
    ((streams, masks),) = kept
    sums, evidence = net.cross_modal.sum_of_evidence(separate, _there(items))
    true = int(items.labels[0])
    other = next(index for index in sums[0].argsort(descending=True).tolist() if index != true)
    parts = torch.cat([evidence[0], logits - sums])
    return Look(
        example,
        tuple(words.encode(example.text or "").tokens),
        attention_of(layer, streams, masks, TEXT, AUDIO)[0].mean(dim=0).numpy(),
        (tokens.names[true], tokens.names[other]),
        (parts[:, true] - parts[:, other]).numpy(),
    )


def _there(items: Items) -> Tensor:
    return torch.stack([mask.amax(dim=1) for mask in items.masks], dim=1)


def attention_of(
    layer: CrossModalLayer, streams: Sequence[Tensor], masks: Sequence[Tensor], own: int, other: int
) -> Tensor:
    """[batch, heads, tokens of own, tokens of other]: how each looks at the other modality; what is missing from 1 goes
    to the sink."""
    looking, seen = (cast(CrossModalStream, layer.streams[m]) for m in (own, other))
    side = OTHERS[own].index(other)
    query = looking.project(streams[own]).queries[side]
    keys, _ = seen.project(streams[other]).keys_values[OTHERS[other].index(own)]
    sink = looking.sinks[side, 0].expand(keys.shape[0], -1, -1, -1)
    scores = query @ torch.cat([sink, keys], dim=2).transpose(2, 3) / query.shape[-1] ** 0.5
    is_open = torch.cat([masks[other].new_ones((keys.shape[0], 1)), masks[other]], dim=1)[:, None, None]
    weights: Tensor = scores.masked_fill(is_open == 0, -torch.inf).softmax(dim=-1)
    return weights[..., 1:]


def picture_of(looks: Sequence[Look]) -> bytes:
    """A row an item: its face, its words beside its sound, and what the answer is made of. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4 * len(looks)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(looks), 3, squeeze=False, width_ratios=(1, 2.4, 2))
    for (face, words, parts), look in zip(grid, looks, strict=True):
        _draw_face(face, look)
        _draw_words(words, look)
        _draw_parts(parts, look)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()


def _draw_face(axes: Axes, look: Look) -> None:
    from PIL import Image

    if look.example.image is not None:
        axes.imshow(Image.open(look.example.image.path))
    axes.set_axis_off()
    axes.set_title(f"{look.example.tags['interplay']}: {look.labels[0]}", fontsize=11)


def _draw_words(axes: Axes, look: Look) -> None:
    seconds = look.attention.shape[1] * FRAMES * FRAME_S
    shown = axes.imshow(look.attention, cmap="Blues", aspect="auto", extent=(0, seconds, len(look.words) - 0.5, -0.5))
    axes.set_yticks(range(len(look.words)), look.words, fontsize=8)
    axes.set_xlabel("sound, seconds")
    axes.set_title("where each word listens", fontsize=11)
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)


def _draw_parts(axes: Axes, look: Look) -> None:
    axes.barh(PARTS, look.parts)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("nats")
    axes.set_title("what speaks for {} rather than {}".format(*look.labels), fontsize=11)
