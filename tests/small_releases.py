"""Releases of a few bytes, made the real way, and how to damage them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmt_pipeline.modality import Modality
from cmt_pipeline.release_info import ReleaseInfo
from cmt_pipeline.stages import STAGES
from cmt_release.release import GoldenAnswer, Release, draft_folder, release_from_engines

GOLDEN_FILES: dict[Modality, bytes] = {"image": b"\xff\xd8 a picture", "text": b"Well."}
INFO = ReleaseInfo(0, "meld", ("joy", "anger"), "mini", "openvino", "fp32", trained=False)
GOLDEN = GoldenAnswer(("image", "text"), {"joy": 0.25, "anger": 0.75}, valence=-0.5, arousal=0.5)
FILES_OF_A_STAGE = {"model.bin", "more/labels.txt"}

#: Of a release of `make`: a blob for each stage, the one that all stages share, two golden files.
BLOBS = len(STAGES) + 1 + len(GOLDEN_FILES)


def make(store: Path, recipe: str = "recipe", **contents: str) -> Release:
    """The store's next release; a stage that isn't named has the same content every time."""
    with draft_folder(store) as draft:
        write_stages(draft, contents)
        write_golden(draft)
        return release_draft(store, draft, recipe)


def write_stages(draft: Path, contents: Mapping[str, str]) -> None:
    """Two files a stage, one of them in a folder."""
    for name in STAGES:
        folder = draft / "stages" / name
        (folder / "more").mkdir(parents=True)
        (folder / "model.bin").write_text(f"{name} {contents.get(name, '')}")
        (folder / "more" / "labels.txt").write_text("joy\nanger\n")


def write_golden(draft: Path) -> None:
    (draft / "golden").mkdir()
    for modality, data in GOLDEN_FILES.items():
        (draft / "golden" / modality).write_bytes(data)


def release_draft(store: Path, draft: Path, recipe: str = "recipe") -> Release:
    return release_from_engines(
        store,
        draft,
        INFO,
        parity=[{"what": "fuse", "engine": "openvino", "precision": "fp32", "error": 1e-7, "tolerance": 1e-4}],
        golden=[GOLDEN],
        golden_tolerance=1e-4,
        preprocess="ab" * 32,
        versions={"torch": "2"},
        recipe=recipe,
    )


def rewrite(path: Path, content: bytes) -> None:
    """As a disk or a person would, past the read-only flag."""
    path.chmod(0o644)
    path.write_bytes(content)
