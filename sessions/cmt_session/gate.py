"""Whether an answer is certain enough to count."""

from __future__ import annotations

import math
from collections.abc import Collection

from cmt_session.observation import Observation
from cmt_session.options import TrackerOptions


def entropy(shares: Collection[float]) -> float:
    """Of probabilities, as a share of the largest that as many of them can have: from 0 to 1."""
    nats = -math.fsum(p * math.log(p) for p in shares if p > 0)
    return min(1.0, max(0.0, nats / math.log(len(shares))))


def refusals(seen: Observation, options: TrackerOptions) -> tuple[str, ...]:
    """Why an answer doesn't count; empty where it does.

    `absent`: nothing was there; `missing`: made without a modality that has to be there; `not_allowed`: made from one
    that may not be used; `untrained`: random weights; `poor_input`: an input of too low a quality; `unlikely`,
    `spread`: too little certainty.
    """
    if not seen.probabilities:
        return ("absent",)
    shares = seen.probabilities.values()
    found = {
        "missing": not set(options.required) <= set(seen.modalities),
        "not_allowed": not set(seen.modalities) <= set(options.modalities),
        "untrained": not (seen.trained or options.untrained),
        "poor_input": any(seen.quality.get(m, 1.0) < options.min_quality for m in seen.modalities),
        "unlikely": max(shares) < options.min_probability,
        "spread": entropy(shares) > options.max_entropy,
    }
    return tuple(reason for reason, holds in found.items() if holds)
