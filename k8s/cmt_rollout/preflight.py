"""Preflight: reasons against a release that can be known before anything is loaded.

A load that fails costs the server memory and time, and a stage that loads with other tensors takes every pipeline
above it down (seen on Triton 2.51), so whatever can be compared on paper is compared first.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path

from cmt_client.operations import ModelDescription, TensorInfo
from cmt_engine.engine import ENGINES
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.release_info import ReleaseStamp
from cmt_pipeline.tensors import resolved
from cmt_release.manifest import Manifest, contract_tensors
from cmt_release.release import Release, ReleaseError
from cmt_server.fitness import misfits
from cmt_server.repository import Repository

CGROUP = Path("/sys/fs/cgroup")
DISK_SPARE = 64 << 20
# An engine holds its weights and works on as much again; a process of the python backend brings its libraries.
MEMORY_FACTOR = 2
PROCESS_BYTES = 200 << 20


def preflight(release: Release, repository: Repository, served: ModelDescription) -> list[str]:
    """Reasons why the release can't run beside the live one; empty if it can.

    served: how the server describes the pipeline `emotion`, which every release must fit.
    """
    try:
        release.verify()
    except ReleaseError as error:
        return [str(error)]
    manifest = release.manifest
    reasons = [*fits(manifest, served), *_fits_beside(manifest, repository), *_fits_runtime(manifest)]
    reasons += [reason for reason in misfits(release) if reason not in reasons]
    missing = _missing_bytes(manifest, repository)
    return reasons + _fits_disk(sum(missing.values()), repository.root) + _fits_memory(missing)


def _fits_beside(manifest: Manifest, repository: Repository) -> list[str]:
    """Reasons why it can't be loaded beside the live release, whose stages have the same configuration."""
    live = repository.live()
    resident = repository.manifests().get(live.release) if live else None
    if resident is None:
        return []
    here, there = resident.features, manifest.features
    # where a compiled plan's own sizes are in the configuration, all of them count
    if here == there or (here.width == there.width and _variant_of(manifest.info.engine) is None):
        return []
    return [f"its features are {there}; those of the live release are {here}: serve it on a server of its own"]


def fits(manifest: Manifest, served: ModelDescription) -> list[str]:
    """Reasons why it can't take the place of what is served, wherever that runs; empty if it can."""
    reasons = [*_fits_contract(manifest), *_fits_served(manifest, served)]
    if manifest.info.engine in ENGINES:
        reasons += ENGINES[manifest.info.engine].never_served(manifest.versions)
    if not manifest.golden:
        reasons.append("it has no golden requests to be checked with; export it with a sample of each modality")
    return reasons


def _fits_contract(manifest: Manifest) -> list[str]:
    expected = contract_tensors(len(manifest.info.labels), manifest.features.width)
    wrong = [name for name, tensors in expected.items() if manifest.tensors.get(name) != tensors]
    if not wrong:
        return []
    return [f"the tensors of {', '.join(wrong)} aren't those of this version's contract; export it with this version"]


def _fits_served(manifest: Manifest, served: ModelDescription) -> list[str]:
    info = manifest.info
    reasons = []
    running = ReleaseStamp.from_parameters(served.parameters)
    if running is not None:
        if (running.label_set, running.labels) != (info.label_set, info.labels):
            reasons.append(
                f"its label set is {info.label_set} ({', '.join(info.labels)}); {running.label_set} is served. Clients "
                "would meet other labels under the same name: serve it on a server of its own"
            )
        if lost := [m for m in running.modalities if m not in info.modalities]:
            reasons.append(
                f"it reads no {' and no '.join(lost)}, which the live release does; serve it on a server of its own"
            )
        if running.valence_arousal and not info.valence_arousal:
            reasons.append("it reads no valence and arousal, which the live release does")
        if _variant_of(running.engine) != _variant_of(info.engine):
            reasons.append(f"its engine is {info.engine}; a server started for {running.engine} is running")
    outputs = {
        spec.name: TensorInfo(spec.name, spec.dtype, resolved(spec, len(info.labels)))
        for spec in PIPELINES["emotion"].outputs
    }
    reasons += [
        f"output {tensor.name} is served as {tensor.datatype} {list(tensor.dims)}; it would become "
        f"{outputs[tensor.name].datatype} {list(outputs[tensor.name].dims)}"
        for tensor in served.outputs
        if tensor.name in outputs and tensor != outputs[tensor.name]
    ]
    return list(dict.fromkeys(reasons))


def _variant_of(engine: str) -> str | None:
    """The configurations that a server of the engine was started with; of an unknown engine, its own."""
    return ENGINES[engine].variant if engine in ENGINES else engine


def _fits_runtime(manifest: Manifest) -> list[str]:
    try:
        runtime = ENGINES[manifest.info.engine].runtime
    except ValueError as error:
        return [f"it can't run here: {error}"]
    if runtime is None or runtime not in manifest.versions:
        return []
    try:
        here = importlib.metadata.version(runtime)
    except importlib.metadata.PackageNotFoundError:
        return [f"{runtime} isn't installed here; pip install 'cmt-triton[serve]'"]
    if here == manifest.versions[runtime]:
        return []
    return [f"it was compiled with {runtime} {manifest.versions[runtime]}; {here} runs here. Export it again"]


def _missing_bytes(manifest: Manifest, repository: Repository) -> dict[str, int]:
    """Bytes that each stage brings that doesn't lie in the repository yet."""
    return {
        name: sum(manifest.sizes[sha256] for sha256 in stage.files.values())
        for name, stage in manifest.stages.items()
        if not repository.version_folder(name, stage.version).is_dir()
    }


def _fits_disk(needed: int, folder: Path) -> list[str]:
    free = shutil.disk_usage(folder).free
    if needed + DISK_SPARE <= free:
        return []
    return [f"it needs {needed >> 20} MB of disk at {folder} and {DISK_SPARE >> 20} MB to spare; {free >> 20} are free"]


def _fits_memory(missing: Mapping[str, int]) -> list[str]:
    needed = sum(MEMORY_FACTOR * size + PROCESS_BYTES for size in missing.values())
    free = available_memory()
    if free is None or needed <= free:
        return []
    return [f"it needs about {needed >> 20} MB of memory beside the live release; {free >> 20} are available"]


def available_memory() -> int | None:
    """Bytes that this machine, or the container around this process, has left; None where nothing says so."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
        limit = int((CGROUP / "memory.max").read_text())
        found.append(limit - int((CGROUP / "memory.current").read_text()))
    return min(found, default=None)
