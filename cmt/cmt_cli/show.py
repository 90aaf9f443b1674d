"""What the verbs print: tables, progress and errors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cmt_pipeline.logs import logs_are_json
from cmt_pipeline.progress import Progress

if TYPE_CHECKING:
    from cmt_client import Emotion, WindowEmotion
    from cmt_pipeline.face_note import FaceNote

LOG = logging.getLogger(__name__)
console = Console()
errors = Console(stderr=True)

EXIT_SERVICE = 1
EXIT_INPUT = 2


def expected_errors() -> tuple[type[BaseException], ...]:
    """Errors whose message says what to do; of modules that are loaded anyway."""
    import sys

    kinds: list[type[BaseException]] = [ValueError, OSError]
    for module, names in {
        "cmt_client": ("EmotionError",),
        "cmt_server.errors": ("ServerError",),
        "cmt_rollout.errors": ("RolloutError",),
        "cmt_engine.engine": ("EngineError",),
        "cmt_release.release": ("ReleaseError",),
        "cmt_export.checkpoint": ("CheckpointError",),
        "cmt_export.parity": ("ParityError",),
        "cmt_training.distributed": ("PeerLost",),
    }.items():
        if module in sys.modules:
            kinds += [getattr(sys.modules[module], name) for name in names]
    return tuple(kinds)


def fail(error: BaseException) -> int:
    """Prints an error; the exit status: 2 where the input is at fault, the error's own if it has one, else 1."""
    if logs_are_json():
        LOG.error(_told(error), extra={"error": type(error).__name__})
    else:
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(_told(error), markup=False, highlight=False, soft_wrap=not errors.is_terminal)
    return EXIT_INPUT if isinstance(error, ValueError) else int(getattr(error, "exit_status", EXIT_SERVICE))


def _told(error: BaseException) -> str:
    """An error of the system without its number, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar; plain lines without a terminal."""
    if logs_are_json() or not errors.is_terminal:
        seen: list[str] = []

        def line(what: str, _: float) -> None:
            if not seen or seen[-1] != what:
                seen.append(what)
                LOG.info(f"{title}: {what}")

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with rich_progress.Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda what, done: bar.update(task, description=f"{title}: {what}", completed=done)


def emotion_table(emotion: Emotion, stages: Sequence[tuple[str, float, float]] = (), total_ms: float = 0) -> Table:
    """An answer; stages: (name, queue ms, compute ms), and the time end to end, where they were measured."""
    title = f"{emotion.label} ({emotion.probability:.1%})" + ("" if emotion.trained else " [red]untrained[/]")
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_row("probabilities", ", ".join(f"{k} {v:.3f}" for k, v in emotion.probabilities.items()))
    if emotion.valence is not None and emotion.arousal is not None:
        table.add_row("valence, arousal", f"{emotion.valence:+.3f}, {emotion.arousal:+.3f}")
    table.add_row("modalities", ", ".join(f"{m} (attention {emotion.attention[m]:.2f})" for m in emotion.modalities))
    if emotion.face is not None:
        table.add_row("face", face_text(emotion.face))
    table.add_row("label set", emotion.label_set)
    table.add_row("release", f"{emotion.release}: {emotion.preset}, {emotion.engine} {emotion.precision}")
    if not emotion.trained:
        table.add_row("[red]untrained[/]", "random weights: the answer means nothing, the times do")
    for name, queue_ms, compute_ms in stages:
        table.add_row(name, f"{compute_ms:.1f} ms" + (f" (queued {queue_ms:.1f} ms)" if queue_ms >= 0.1 else ""))
    if total_ms:
        table.add_row("end to end", f"{total_ms:.1f} ms; the encoders run side by side")
    return table


def face_text(face: FaceNote) -> str:
    """One line of what was looked at."""
    if face.box is None:
        return "none found: " + ("the whole picture" if face.used == "whole" else "the picture counts as absent")
    left, top, right, bottom = face.box
    return f"({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), turned by {face.angle_deg:.0f}°, {face.score:.2f}"


def window_table(windows: Sequence[WindowEmotion]) -> Table:
    """The answers to the windows of a long sound."""
    table = Table("start s", "end s", "emotion", "probability", "valence", title="Windows", title_justify="left")
    for window in windows:
        emotion = window.emotion
        valence = "" if emotion.valence is None else f"{emotion.valence:+.3f}"
        figures = (f"{emotion.probability:.1%}", valence)
        table.add_row(f"{window.start_s:.2f}", f"{window.end_s:.2f}", emotion.label, *figures)
    return table


def parity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How far an export is from the truth: stages by relative RMS, pipelines by their largest difference of p."""
    kinds = list(dict.fromkeys((row["engine"], row["precision"]) for row in rows))
    table = Table(title="Difference from fp32", title_justify="left")
    table.add_column("")
    table.add_column("measure")
    for engine, precision in kinds:
        table.add_column(f"{engine} {precision}", justify="right")
    table.add_column("tolerance", justify="right")
    for what in dict.fromkeys(row["what"] for row in rows):
        found = {(row["engine"], row["precision"]): row for row in rows if row["what"] == what}
        errors_of = [_coloured(found[kind]) if kind in found else "" for kind in kinds]
        tolerance = f"{max(row['tolerance'] for row in found.values()):.1e}"
        table.add_row(what, "max |Δp|" if what.startswith("emotion") else "RMS", *errors_of, tolerance)
    return table


def _coloured(row: Mapping[str, Any]) -> str:
    return f"[{'green' if row['error'] <= row['tolerance'] else 'red'}]{row['error']:.1e}[/]"
