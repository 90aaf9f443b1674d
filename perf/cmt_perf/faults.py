"""Releases that must never reach traffic, made from a sound one: what an upgrade is tried with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cmt_pipeline.constants import ADAPTER_FILE
from cmt_pipeline.labels import labels_of
from cmt_pipeline.stages import STAGES
from cmt_release.locks import draft_folder
from cmt_release.manifest import STAGES_FOLDER, Manifest, Tensor
from cmt_release.release import Release, publish_draft, release_from_engines

#: An adapter that changes what the stage's engine answers.
ADAPTER = '''"""An adapter whose answers are wrong on purpose."""

import time

import numpy as np

from cmt_server.adapters import EngineModel


class TritonPythonModel(EngineModel):
    def initialize(self, args):
        super().initialize(args)
        engine = self._engine

        class Changed:
            def run(self, inputs):
                outputs = engine.run(inputs)
                {change}
                return outputs

        self._engine = Changed()
'''
CHANGES = {
    "nan": 'outputs["probabilities"] = outputs["probabilities"] * np.nan',
    "wrong_dims": 'outputs["probabilities"] = outputs["probabilities"][:, 1:]',
    "slow": "time.sleep(0.6)",
}


def changed_answers(store: Path, base: Release, kind: str) -> Release:
    """A release whose `fuse` answers NaN, with a label too few, or late: `nan`, `wrong_dims`, `slow`."""
    return _changed_fuse(store, base, CHANGES[kind])


def wears_out(store: Path, base: Release, batches: int) -> Release:
    """A release that answers well, but not more than so many batches."""
    change = f"self.runs = getattr(self, 'runs', 0) + 1; assert self.runs <= {batches}, 'worn out'"
    return _changed_fuse(store, base, change)


def unloadable(store: Path, base: Release) -> Release:
    """A release whose text encoder is no engine, though every digest is right."""
    return _changed(store, base, "encode_text", lambda folder: _rewrite(folder / "model.xml", "no engine"))


def damaged(store: Path, base: Release) -> Release:
    """A release one bit of which went bad after it was made."""
    release = _changed(store, base, "fuse", lambda f: _rewrite(f / ADAPTER_FILE, (f / ADAPTER_FILE).read_text() + "\n"))
    _rewrite(release.stage_folder("fuse") / ADAPTER_FILE, '"""Something else."""\n')
    return release


def other_labels(store: Path, base: Release) -> Release:
    """A release of another label set."""
    return _remade(
        store, base, lambda m: replace(m, info=replace(m.info, labels=labels_of("iemocap4"), label_set="iemocap4"))
    )


def other_tensors(store: Path, base: Release) -> Release:
    """A release whose manifest says that its features are half as wide."""

    def narrower(manifest: Manifest) -> Manifest:
        fuse = manifest.tensors["fuse"]
        inputs = {**fuse.inputs, "text_features": Tensor("FP32", (-1, 128))}
        return replace(manifest, tensors={**manifest.tensors, "fuse": replace(fuse, inputs=inputs)})

    return _remade(store, base, narrower)


def _changed_fuse(store: Path, base: Release, change: str) -> Release:
    return _changed(store, base, "fuse", lambda f: _rewrite(f / ADAPTER_FILE, ADAPTER.format(change=change)))


def _changed(store: Path, base: Release, stage: str, change: Callable[[Path], None]) -> Release:
    manifest = base.manifest
    with draft_folder(store) as draft:
        _copy(base, draft)
        change(draft / STAGES_FOLDER / stage)
        return release_from_engines(
            store,
            draft,
            manifest.info,
            features=manifest.features,
            published=manifest.published,
            parity=manifest.parity,
            golden=manifest.golden,
            golden_tolerance=manifest.golden_tolerance,
            preprocess=manifest.preprocess,
            versions=manifest.versions,
            recipe=f"{manifest.recipe} changed",
        )


def _remade(store: Path, base: Release, change: Callable[[Manifest], Manifest]) -> Release:
    whole = _changed(store, base, "fuse", lambda _: None)
    manifest = change(whole.manifest)
    with draft_folder(store) as draft:
        _copy(whole, draft)
        return publish_draft(store, draft, _numbered(manifest, whole.number + 1))


def _numbered(manifest: Manifest, number: int) -> Manifest:
    stages = {name: replace(s, version=number) if STAGES[name].stamped else s for name, s in manifest.stages.items()}
    return replace(manifest, info=replace(manifest.info, release=number), stages=stages)


def _copy(base: Release, draft: Path) -> None:
    shutil.copytree(base.folder, draft, dirs_exist_ok=True)
    (draft / "manifest.json").unlink()


def _rewrite(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text)
