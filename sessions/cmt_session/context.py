"""Where a deployment is used, and which modalities may be read there.

The table follows Article 5(1)(f) of the EU's AI Act (Regulation 2024/1689), applied since 2 February 2025: inferring
emotions of persons from biometric data (face, voice) at work and in education is forbidden, except for medical or
safety reasons; consent doesn't cure it. Text alone isn't biometric (Article 3(39)). Article 50(3), since 2 August 2026:
whoever is exposed is told so, at the first exposure at the latest. No legal advice; other laws hold beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.modality import MODALITIES, Modality

Context = Literal["general", "customer_service", "education", "workplace", "medical"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
#: Reasons for which the prohibition makes an exception. Both are read narrowly: well-being at work is neither.
Exemption = Literal["medical", "safety"]
EXEMPTIONS: tuple[Exemption, ...] = get_args(Exemption)

BIOMETRIC: tuple[Modality, ...] = ("image", "audio")
FORBIDDEN = "AI Act, Article 5(1)(f)"


@dataclass(frozen=True)
class Rule:
    """What holds in a context. who: whose emotions may be read; reason: why these modalities, in a sentence."""

    context: Context
    who: str
    modalities: tuple[Modality, ...]
    reason: str


RULES: dict[Context, Rule] = {
    rule.context: rule
    for rule in (
        Rule("general", "anyone but employees, applicants, pupils and students", MODALITIES, "no prohibition applies"),
        Rule(
            "customer_service",
            "the customer; what the agent shows belongs to `workplace`",
            MODALITIES,
            "customers' emotions may be inferred, those of the agents at their work may not",
        ),
        Rule(
            "education",
            "learners and applicants",
            ("text",),
            f"emotions of persons in education may not be inferred from face or voice ({FORBIDDEN})",
        ),
        Rule(
            "workplace",
            "employees and applicants",
            ("text",),
            f"emotions of persons at work may not be inferred from face or voice ({FORBIDDEN})",
        ),
        Rule("medical", "patients", MODALITIES, "medical reasons are excepted from the prohibition"),
    )
}


@dataclass(frozen=True)
class Ruling:
    """What a deployment may read. exemption: the reason for an exception that it claims, None for none."""

    rule: Rule
    exemption: Exemption | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that may be read, in contract order."""
        return MODALITIES if self.exemption else self.rule.modalities

    @property
    def reason(self) -> str:
        """Why these, in a sentence without a full stop."""
        if self.exemption and self.rule.modalities != MODALITIES:
            return f"{self.rule.reason}, except for {self.exemption} reasons, which this deployment claims"
        return self.rule.reason

    def notice(self, modalities: Iterable[Modality] = MODALITIES) -> str:
        """What a person has to be told before these are read; empty where the law asks for nothing."""
        read = [m for m in BIOMETRIC if m in set(modalities) & set(self.modalities)]
        if not read:
            return ""
        what = " and ".join({"image": "face", "audio": "voice"}[m] for m in read)
        return f"This service infers emotions from your {what}."

    def check(self, modalities: Iterable[Modality]) -> None:
        """Raises InvalidInput (code `not_allowed`) for the first modality that may not be read here."""
        given = set(modalities)
        for modality in MODALITIES:
            if modality in given and modality not in self.modalities:
                told = f"got {modality} in the context {self.rule.context}; expected text alone: {self.reason}"
                raise InvalidInput(modality, "not_allowed", told)


def ruling(context: str, exemption: str | None = None) -> Ruling:
    """What a deployment in a context may read. ValueError for an unknown context or exemption."""
    if context not in RULES:
        raise ValueError(f"context: got {context!r}; expected one of {', '.join(CONTEXTS)}")
    if exemption is not None and exemption not in EXEMPTIONS:
        raise ValueError(f"exemption: got {exemption!r}; expected {' or '.join(EXEMPTIONS)}, or none")
    return Ruling(RULES[context], exemption)
