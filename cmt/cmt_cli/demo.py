"""`cmt demo`: export, serve, ask, stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from cmt_client import Emotion

WARM_UP = 5


def demo(
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8.")] = "fp32",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Exports the mini preset, starts Triton, asks it about a face, a voice and a sentence, and stops it.

    Example: [bold]cmt demo --precision int8[/]
    """
    from cmt_cli.export import run_export, sample, trained_weights
    from cmt_cli.serve import serving
    from cmt_cli.show import console, emotion_table
    from cmt_export.export import ExportOptions
    from cmt_pipeline.limits import DEFAULT_LIMITS
    from cmt_server.server import ServerOptions

    chosen = State(state)
    exported = ExportOptions(precision=precision, checkpoint=trained_weights("mini", "meld"))  # type: ignore[arg-type]
    release = run_export(exported, chosen)
    options = ServerOptions(
        repository=(chosen.root / "demo").absolute(),  # what `cmt serve` served last stays as it is
        work=chosen.server.absolute(),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    text = sample("text").read_text().strip()
    with serving(chosen, release, options, DEFAULT_LIMITS) as server:
        console.print(
            f"[bold]image[/] {sample('image').name}  [bold]audio[/] {sample('audio').name}  [bold]text[/] {text}"
        )
        emotion, stages, total_ms = ask(server.grpc_url, text)
        console.print(emotion_table(emotion, stages, total_ms))
    console.print("server stopped")


def ask(url: str, text: str) -> tuple[Emotion, list[tuple[str, float, float]], float]:
    """The answer of a warm server, each stage's (name, queue ms, compute ms), and the milliseconds end to end."""
    from cmt_cli.export import sample
    from cmt_client import EmotionClient, connect, server_status
    from cmt_pipeline.stages import STAGES

    transport = connect(url)
    try:
        with EmotionClient(url) as client:
            for _ in range(WARM_UP):
                client.predict(image=sample("image"), audio=sample("audio"), text=text)
            before = {s.name: s for s in server_status(transport).stages}
            start = time.perf_counter()
            emotion = client.predict(image=sample("image"), audio=sample("audio"), text=text)
            total_ms = (time.perf_counter() - start) * 1e3
            after = server_status(transport).stages
    finally:
        transport.close()
    stages = []
    for stage in sorted(after, key=lambda s: list(STAGES).index(s.name)):
        then = before[stage.name]
        if stage.execution_count > then.execution_count:
            queue_ms = (stage.queue.total_ns - then.queue.total_ns) / 1e6
            compute_ms = (stage.compute_infer.total_ns - then.compute_infer.total_ns) / 1e6
            stages.append((stage.name, queue_ms, compute_ms))
    return emotion, stages, total_ms
