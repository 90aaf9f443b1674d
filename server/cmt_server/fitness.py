"""Whether this machine can serve a release: told before anything is replaced, installed or loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from cmt_engine.engine import ENGINES, EngineSidecar
from cmt_pipeline.stages import FUSE
from cmt_release.release import Release
from cmt_server.binary import has_backend
from cmt_server.errors import ServerError


def misfits(release: Release) -> list[str]:
    """Reasons against serving it here, each with its mend; empty if none is known."""
    info, versions = release.manifest.info, release.manifest.versions
    if info.engine not in ENGINES:
        return []
    engine = ENGINES[info.engine]
    if never := engine.never_served(versions):
        return never
    reasons = engine.misfits(versions, _target(release))
    if engine.backend and not _has(engine.backend):
        reasons.append(
            f"it needs Triton's {engine.backend} backend, which the tritonserver here lacks: serve it in the official "
            "Triton image (docs/gpu.md)"
        )
    return reasons


def check_fits(release: Release) -> None:
    """ServerError with every reason against serving it here."""
    if reasons := misfits(release):
        raise ServerError(f"release {release.number} can't be served here: {'; '.join(reasons)}")


def _target(release: Release) -> Mapping[str, str]:
    """What its stages were compiled for, all on one machine; nothing where no file says it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return EngineSidecar.read(release.stage_folder(FUSE.name)).target
    return {}


def _has(backend: str) -> bool:
    """True as well where no tritonserver is here: its start says that, and an upgrade needs none."""
    with contextlib.suppress(ServerError):
        return has_backend(backend)
    return True
