"""How a model is trained: every default of `cmt train` and `cmt compare`, written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cmt_pipeline.presets import preset_of

Model = Literal["cmt", "image", "audio", "text", "late", "concat", "conventional"]
MODELS: tuple[Model, ...] = get_args(Model)

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and how.

    model: `cmt` or a baseline; the encoders are the preset's in every case. text_layers: how many of the text encoder's
    last layers are trained; with 0, its hidden states are computed once. class_weighting: a class counts as its
    frequency to the power of minus this. patience: epochs without a better validation loss before training stops.
    threads: 0 takes one for each core.

    head_learning_rate: of heads that read images and sounds alone, and of the projections before them;
    encoder_learning_rate: of image and audio encoders that are trained (published ones want a tenth or less);
    text_learning_rate: of the text encoder's last layers; learning_rate: of all else.

    modality_dropout: chance of an item to lose a modality that it has, never its last. token_dropout: share of image
    patches that training leaves out at random (PatchDropout, Liu et al. 2022, arXiv 2208.07220), and of a sound, of
    which one stretch stays: cheaper, and a regulariser. augment: whether media are changed at random, which a stretch
    of a sound is part of.

    tune_encoders: whether published image and audio encoders are trained too. Else they stay as they are and are run
    once, as befits little data and a machine without a GPU.

    audio_pretraining_steps: of an audio encoder that nobody published weights for (`cmt_training.audio_pretraining`).
    encoder_epochs: of encoders that start from nothing, under heads of their own, before a fusion learns from their
    features: encoders that learn beside it leave the answer to the text. 0: everything learns together, as published
    encoders do, and as an encoder alone always does.

    auxiliary, valence_arousal, cues: weights of losses beside the answer's: of a light head on each modality alone,
    which keeps the weaker encoders learning (Wang et al. 2020, arXiv 1905.12681) and is thrown away afterwards; of
    valence and arousal, and of what each modality shows (as facial action units beside expressions in Kollias &
    Zafeiriou 2019, arXiv 1910.04855), where the data has them.
    """

    preset: str = "mini"
    model: Model = "cmt"
    epochs: int = 8
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 3e-4
    head_learning_rate: float = 3e-3
    encoder_learning_rate: float = 3e-4
    text_learning_rate: float = 5e-5
    weight_decay: float = 0.05
    warm_up: float = 0.1
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    class_weighting: float = 0.5
    modality_dropout: float = 0.5
    token_dropout: float = 0.5
    auxiliary: float = 1.0
    valence_arousal: float = 0.2
    cues: float = 1.0
    augment: bool = True
    audio_pretraining_steps: int = 700
    encoder_epochs: int = 10
    text_layers: int = 0
    tune_encoders: bool = False
    patience: int = 5
    precision: Precision = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        """ValueError for a value that can't be trained with."""
        preset_of(self.preset)
        for name, accepted in (("model", MODELS), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; expected one of {', '.join(accepted)}")
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected 1 or more")
        for name in ("modality_dropout", "token_dropout", "label_smoothing", "warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected 0 or more and less than 1")
