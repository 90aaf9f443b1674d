"""`cmt demo`: export, serve, ask, stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_pipeline.constants import GATEWAY_PORT
from cmt_pipeline.modality import MODALITIES, Modality

if TYPE_CHECKING:
    from rich.table import Table

    from cmt_client import Emotion, Item, Transport
    from cmt_client.operations import ModelStatistics

WARM_UP = 5
COUNTED_WITHIN_S = 5.0


def demo(
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8.")] = "fp32",
    live: Annotated[bool, typer.Option("--live", help="Stay, with the live page on http://127.0.0.1:8080.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Exports the mini preset, serves it, asks about a face, a voice and a sentence, and stops.

    With --live it asks nothing and stays, behind a page for camera, microphone and words.

    Example: [bold]cmt demo --precision int8[/]
    """
    from cmt_cli.export import run_export, sample, trained_weights
    from cmt_cli.gateway import gateway_before
    from cmt_cli.serve import WATCH_S, serving
    from cmt_cli.show import console, emotion_table
    from cmt_cli.signals import stop_signal
    from cmt_export.export import ExportOptions
    from cmt_server.repository import InstallOptions
    from cmt_server.server import ServerOptions

    chosen = State(state)
    exported = ExportOptions(precision=precision, checkpoint=trained_weights("mini", "meld"))
    release = run_export(exported, chosen)
    options = ServerOptions(
        repository=(chosen.root / "demo").absolute(),  # what `cmt serve` served last stays as it is
        work=chosen.server.absolute(),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    with stop_signal() as stop, serving(chosen, release, options, InstallOptions(), stop) as server:
        if live:
            with gateway_before(server.grpc_url, GATEWAY_PORT) as before:
                console.print("Open the page that is named below; Ctrl-C stops all.")
                while not stop.wait(WATCH_S):
                    before.look()
            return
        answers, stages, total_ms = ask(server.grpc_url)
    meant = sample("label").read_text().strip()
    text = sample("text").read_text().strip()
    console.print(f"\n[bold]{meant}[/] is what a drawn face, a synthesised voice and '{text}' are meant to show.\n")
    console.print(alone_and_together(answers, meant))
    console.print(emotion_table(answers[MODALITIES], stages, total_ms))
    console.print("server stopped; `cmt serve` starts one that stays")


def ask(url: str) -> tuple[dict[tuple[Modality, ...], Emotion], list[tuple[str, float, float]], float]:
    """What a warm server answers to each sample alone and to all three.

    With, of the last, each stage's (name, queue ms, compute ms) and the milliseconds end to end.
    """
    from cmt_client import EmotionClient, connect

    transport = connect(url)
    try:
        with EmotionClient(url) as client:
            answers: dict[tuple[Modality, ...], Emotion] = {(m,): client.predict(**_samples(m)) for m in MODALITIES}
            for _ in range(WARM_UP):
                client.predict(**_samples(*MODALITIES))
            before = _counted(transport, {})
            start = time.perf_counter()
            answers[MODALITIES] = client.predict(**_samples(*MODALITIES))
            total_ms = (time.perf_counter() - start) * 1e3
            after = _counted(transport, before)
    finally:
        transport.close()
    stages = [
        (
            name,
            (after[name].queue.total_ns - then.queue.total_ns) / 1e6,
            (after[name].compute_infer.total_ns - then.compute_infer.total_ns) / 1e6,
        )
        for name, then in before.items()
        if after[name].execution_count > then.execution_count
    ]
    return answers, stages, total_ms


def _counted(transport: Transport, before: Mapping[str, ModelStatistics]) -> dict[str, ModelStatistics]:
    """Each stage's statistics, in the order of a request; those that ran before have run again. Triton counts a batch
    only after it has answered, so they are read until they stand still."""
    from cmt_client import server_status
    from cmt_pipeline.stages import STAGES

    ran = {name: stage.execution_count for name, stage in before.items() if stage.execution_count}
    deadline, last = time.monotonic() + COUNTED_WITHIN_S, None
    while True:
        found = {stage.name: stage for stage in server_status(transport).stages}
        again = all(found[name].execution_count > count for name, count in ran.items())
        if (again and found == last) or time.monotonic() > deadline:
            return {name: found[name] for name in STAGES if name in found}
        last = found
        time.sleep(0.05)


def _samples(*modalities: Modality) -> Item:
    from cmt_cli.export import sample

    item: Item = {}
    for m in modalities:
        item[m] = sample("text").read_text().strip() if m == "text" else sample(m)
    return item


def alone_and_together(answers: Mapping[tuple[Modality, ...], Emotion], meant: str) -> Table:
    """A row for each answer: of what, which label, how sure; green where it is what was meant."""
    from rich.table import Table

    table = Table("asked about", "answer", "probability")
    for modalities, emotion in answers.items():
        colour = "green" if emotion.label == meant else "red"
        table.add_row(", ".join(modalities), f"[{colour}]{emotion.label}[/]", f"{emotion.probability:.1%}")
    return table
