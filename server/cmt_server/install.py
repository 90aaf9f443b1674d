"""Installs a release into the repository that tritonserver reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cmt_export.release import Release
from cmt_pipeline.limits import Limits
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.reference import configuration_files, write_files
from cmt_pipeline.triton_config import DEFAULT_TUNING, LABELS_FILE, Served, StageTuning


@dataclass(frozen=True)
class InstallOptions:
    """limits: what the service accepts; tuning: how each stage runs on this machine."""

    limits: Limits = field(default_factory=Limits)
    tuning: Mapping[str, StageTuning] = field(default_factory=lambda: DEFAULT_TUNING)


def install_release(release: Release, repository: Path, options: InstallOptions | None = None) -> None:
    """Replaces `repository` by one that serves this release alone; every file is verified first.

    A pipeline's version is the release's number; its steps pin the release's stage versions. Artefacts are hard links
    where the file system has them. Not for a repository that a server is reading: that is what a rollout is for.
    """
    options = options or InstallOptions()
    release.verify()
    draft = repository.with_name(f".{repository.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    pins = {name: stage.version for name, stage in release.manifest.stages.items()}
    for name, version in pins.items():
        _link_tree(release.stage_folder(name), draft / name / str(version))
    for pipeline in PIPELINES:
        (draft / pipeline / str(release.number)).mkdir(parents=True)
    info = release.manifest.info
    served = Served(
        versions={name: (version,) for name, version in pins.items()},
        pins=pins,
        labels=len(info.labels),
        releases=(info,),
        limits=options.limits,
        tuning=options.tuning,
    )
    write_files(draft, configuration_files(served, info.labels))
    shutil.rmtree(repository, ignore_errors=True)
    draft.rename(repository)


def _link_tree(source: Path, target: Path) -> None:
    def link_or_copy(path: str, copy: str) -> str:
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)
        return copy

    shutil.copytree(source, target, copy_function=link_or_copy, ignore=shutil.ignore_patterns(LABELS_FILE))
