"""Observations for tests of sessions: drawn by hypothesis, or of one label."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cmt_pipeline.labels import LABEL_SETS
from cmt_pipeline.modality import SUBSETS
from cmt_session import Observation

MELD = LABEL_SETS["meld"]
#: Label sets of releases that a session may meet one after another.
LABELS = (MELD, LABEL_SETS["iemocap6"], LABEL_SETS["affectnet8"], ("calm", "bored"), tuple(reversed(MELD)))


def of(label: str, end_s: float, *, p: float = 0.8, labels: tuple[str, ...] = MELD, **more: Any) -> Observation:
    """A picture in which one label has a probability, and the others share the rest."""
    rest = (1 - p) / (len(labels) - 1)
    shares = {name: p if name == label else rest for name in labels}
    given: dict[str, Any] = {"start_s": end_s, "modalities": ("image",), "digest": "one", **more}
    return Observation(end_s=end_s, probabilities=shares, **given)


@st.composite
def observations(draw: st.DrawFn, end_s: float) -> Observation:
    """Any: of any modalities and release, certain or not, of poor input, untrained, or with nothing there."""
    start_s = max(0.0, end_s - draw(st.sampled_from((0.0, 0.5, 3.0))))
    if draw(st.integers(0, 9)) == 0:
        return Observation(start_s, end_s)
    release = draw(st.sampled_from((0, 0, 0, 0, 1, 2, 3, 4)))
    labels = LABELS[release]
    top, sharpness = draw(st.integers(0, len(labels) - 1)), draw(st.sampled_from((1.0, 4.0, 30.0, 1e6)))
    weights = [sharpness if place == top else draw(st.floats(0.1, 2)) for place in range(len(labels))]
    shares = {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
    modalities = draw(st.sampled_from(SUBSETS))
    valence = draw(st.none() | st.floats(-1, 1))
    quality = {modalities[0]: draw(st.sampled_from((0.1, 0.9)))}
    trained = draw(st.integers(0, 19)) > 0
    return Observation(start_s, end_s, modalities, shares, valence, valence, quality, f"release {release}", trained)


@st.composite
def sessions(draw: st.DrawFn, most: int = 30, ordered: bool = False) -> list[Observation]:
    """Events in the order of their arrival; unless `ordered`, some are late and some are duplicates."""
    steps = st.sampled_from(
        (0.1, 0.3, 1.0, 2.5, 8.0, 40.0) if ordered else (-7.0, -1.0, 0.0, 0.1, 0.3, 1.0, 2.5, 8.0, 40.0)
    )
    end_s, events = 0.0, []
    for _ in range(draw(st.integers(1, most))):
        end_s = max(0.0, end_s + draw(steps))
        events.append(draw(observations(end_s)))
        if not ordered and draw(st.integers(0, 7)) == 0:
            events.append(events[-1])
    return events
