"""Emotion -> what the face does.

The actions follow the prototypes of the Facial Action Coding System (Ekman & Friesen, 1978) in a drawing's terms.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class Actions:
    """How far each part moves from rest; 1 is as far as a strong expression goes."""

    brow_inner: float = 0.0  # up
    brow_outer: float = 0.0  # up
    furrow: float = 0.0  # brows towards each other
    lid_upper: float = 0.0  # wider open
    lid_lower: float = 0.0  # up
    nose: float = 0.0  # wrinkled
    lip_upper: float = 0.0  # up
    corners: float = 0.0  # up
    open: float = 0.0
    width: float = 0.0
    press: float = 0.0  # lips together
    gaze_down: float = 0.0
    tilt: float = 0.0


REST = Actions()

#: Each emotion has faces of more than one kind, and so has a smirk: a smile of closed lips under half-closed lids.
FACES: dict[str, tuple[Actions, ...]] = {
    "neutral": (REST,),
    "surprise": (
        Actions(brow_inner=1.0, brow_outer=1.0, lid_upper=0.9, open=0.95, width=-0.35),
        Actions(brow_inner=0.8, brow_outer=1.0, lid_upper=0.7, open=0.5, width=-0.5, tilt=0.3),
    ),
    "fear": (
        Actions(brow_inner=0.95, brow_outer=0.35, furrow=0.6, lid_upper=0.9, open=0.4, width=0.45, corners=-0.35),
        Actions(brow_inner=0.8, brow_outer=0.2, furrow=0.7, lid_upper=0.7, open=0.15, width=0.6, corners=-0.5),
    ),
    "sadness": (
        Actions(brow_inner=0.8, brow_outer=-0.6, furrow=0.3, lid_upper=-0.5, corners=-0.9, gaze_down=0.7, tilt=0.5),
        Actions(brow_inner=0.9, brow_outer=-0.4, lid_upper=-0.3, corners=-0.7, width=-0.2, press=0.4, gaze_down=0.3),
    ),
    "joy": (
        Actions(lid_upper=-0.1, lid_lower=0.7, corners=1.0, open=0.4, width=0.5, brow_outer=0.2),
        Actions(lid_lower=0.5, corners=0.8, width=0.4, brow_outer=0.1, tilt=0.3),
        Actions(lid_upper=-0.4, lid_lower=0.9, corners=1.0, open=0.75, width=0.4),
    ),
    "disgust": (
        Actions(brow_inner=-0.5, furrow=0.4, lid_upper=-0.5, lid_lower=0.5, nose=1.0, lip_upper=1.0, corners=-0.4),
        Actions(brow_inner=-0.3, lid_upper=-0.6, nose=0.8, lip_upper=0.7, corners=-0.7, open=0.2, tilt=-0.5),
    ),
    "anger": (
        Actions(brow_inner=-1.0, brow_outer=0.2, furrow=1.0, lid_upper=0.2, lid_lower=0.4, press=0.9, corners=-0.35),
        Actions(brow_inner=-1.0, brow_outer=0.3, furrow=0.8, lid_upper=0.4, nose=0.3, open=0.55, width=0.3),
    ),
    "smirk": (
        Actions(brow_outer=0.7, lid_upper=-0.7, lid_lower=0.3, corners=0.6, width=-0.2, press=0.8, tilt=0.4),
        Actions(brow_inner=-0.3, brow_outer=0.8, lid_upper=-0.6, corners=0.7, press=0.7, tilt=-0.3),
    ),
}
JITTER = 0.06  # standard deviation of every action, whatever the emotion


def actions_of(emotion: str, strength: float, rest: Actions, rng: np.random.Generator) -> Actions:
    """The face of an emotion, added to what the person's face does at rest. strength: 0 to 1."""
    kinds = FACES[emotion]
    kind = np.array(astuple(kinds[int(rng.integers(len(kinds)))]))
    moved = np.array(astuple(rest)) + strength * kind + rng.normal(0, JITTER, len(kind))
    return Actions(*(float(value) for value in moved))
