"""How a model is trained: every default of `cmt train` and `cmt compare`, written once."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from cmt_pipeline.presets import preset_of

Model = Literal["cmt", "image", "audio", "text", "late", "concat", "conventional"]
MODELS: tuple[Model, ...] = get_args(Model)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

FROZEN, LAST, FULL, LORA = "frozen", "last-", "full", "lora"  # how published encoders are tuned; LAST: and a number
#: What of the options doesn't decide the result, and may differ when a training goes on.
HOW_IT_RUNS = ("threads", "shard", "save_every")


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and how.

    model: `cmt` or a baseline; the encoders are the preset's in every case. batch_size: items of a step, of all
    processes together, in `accumulate` parts one after another. class_weighting: a class counts as its frequency to the
    power of minus this. patience: epochs without a better validation loss before training stops. threads: 0 takes one
    for each core. shard: several processes each hold a part of the encoders (FSDP2), where memory asks. save_every:
    steps between states within an epoch; 0: only after each.

    Published encoders
    tune: frozen, last-N, full or lora (`cmt_training.tuning`). tune_learning_rate: of what is tuned of them, at its
    last layer; None: 5e-4 for LoRA, else 3e-5. layer_decay: each layer learns at so many times the rate of the one
    above; None: its family's (`cmt_export.family`); 1: all alike. gradient_checkpointing: their layers are computed
    again for the gradient rather than kept. learning_rate: of the fusion and its projections; None: 1e-4 beside
    encoders that are tuned, else 3e-4. ema: decay of an average of the weights over steps, which is what is evaluated
    and saved; None: 0.999 where encoders are tuned, 0.99 where all stay as they are, 0, none, where some start from
    nothing.

    Encoders of images and sounds that nobody published
    encoder_learning_rate: theirs; head_learning_rate: of heads that read them alone, frozen published ones too, and of
    the projections before. token_dropout: share of image patches that training leaves out at random (PatchDropout, Liu
    et al. 2022, arXiv 2208.07220), and of a sound, of which one stretch stays: cheaper.
    first_weights: whether they start as filters (`cmt_training.initial`). audio_pretraining_steps: of
    `cmt_training.audio_pretraining`; 0: none, nor its wavelets. encoder_epochs: under heads of their own, before a
    fusion learns from their features: encoders that learn beside it leave the answer to the text. 0: everything learns
    together, as published encoders do, and as an encoder alone always does.

    modality_dropout: chance of an item to lose a modality that it has, never its last. augment: whether media are
    changed at random, which a stretch of a sound is part of.

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
    accumulate: int = 1
    tune: str = FROZEN
    tune_learning_rate: float | None = None
    layer_decay: float | None = None
    gradient_checkpointing: bool = False
    ema: float | None = None
    learning_rate: float | None = None
    head_learning_rate: float = 3e-3
    encoder_learning_rate: float = 3e-4
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
    first_weights: bool = True
    audio_pretraining_steps: int = 700
    encoder_epochs: int = 10
    patience: int = 5
    precision: Precision = "auto"
    threads: int = 0
    shard: bool = False
    save_every: int = 0

    def __post_init__(self) -> None:
        """ValueError for a value that can't be trained with."""
        preset_of(self.preset)
        for name, accepted in (("model", MODELS), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; expected one of {', '.join(accepted)}")
        if self.tune not in (FROZEN, FULL, LORA) and not re.fullmatch(rf"{LAST}[1-9]\d*", self.tune):
            raise ValueError(f"tune: got {self.tune!r}; expected {FROZEN}, {LAST}N (such as {LAST}4), {FULL} or {LORA}")
        for name in ("epochs", "batch_size", "accumulate", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected 1 or more")
        for name in ("modality_dropout", "token_dropout", "label_smoothing", "warm_up", "ema"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected 0 or more and less than 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: got {self.layer_decay}; expected more than 0 and 1 at most")

    def rates(self) -> dict[str, float]:
        """Peak learning rates of parts of a model."""
        tuned = self.tune_learning_rate or (5e-4 if self.tune == LORA else 3e-5)
        rest = self.learning_rate or (3e-4 if self.tune == FROZEN else 1e-4)
        return {
            "heads": self.head_learning_rate,
            "encoder": self.encoder_learning_rate,
            "tuned": tuned,
            "rest": rest,
        }

    def recipe(self) -> dict[str, Any]:
        """Those that decide the result."""
        return {name: value for name, value in asdict(self).items() if name not in HOW_IT_RUNS}
