"""`cmt tune`: the best configuration of this machine under a latency bound."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

SHOWN = 8


def tune(
    release: Annotated[
        list[int] | None, typer.Option(help="Release that may be chosen; repeatable. All by default.")
    ] = None,
    slo_ms: Annotated[float, typer.Option(help="Latency in ms that 95 % of single requests must keep.")] = 128.0,
    audio_s: Annotated[float, typer.Option(help="Seconds of sound in each request.")] = 4.0,
    text_tokens: Annotated[int, typer.Option(help="Tokens in each request.")] = 64,
    concurrency: Annotated[int, typer.Option(help="Closed loops that measure throughput.")] = 4,
    requests: Annotated[int, typer.Option(help="Requests measured for each configuration.")] = 20,
    trials: Annotated[int, typer.Option(help="Most configurations to try.")] = 40,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Searches the best configuration for this machine under a latency bound.

    It tries threads, instances, priority, queue delays and precisions of the whole ensemble, and writes
    STATE/tuning.json for `cmt serve --tuning`. Export a release for each precision first, and keep the machine
    quiet: each configuration is served and asked for some seconds.

    Example: [bold]cmt tune --slo-ms 128[/]
    """
    from rich.table import Table

    from cmt_cli.show import console, progress_bar
    from cmt_perf.bench.scenarios import Size
    from cmt_perf.conditions import conditions
    from cmt_perf.tune import TuneOptions, described, plot, result_of
    from cmt_perf.tune import tune as search
    from cmt_release.release import open_release, release_numbers
    from cmt_server.tuning import TUNING_FILE, write_tuning

    chosen = State(state)
    options = TuneOptions(
        releases=[open_release(chosen.releases, n) for n in release or release_numbers(chosen.releases)],
        slo_ms=slo_ms,
        cores=len(os.sched_getaffinity(0)),
        concurrency=concurrency,
        requests=requests,
        trials=trials,
        size=Size(audio_s=audio_s, text_tokens=text_tokens),
    )
    with progress_bar("tune") as progress:
        found = search(options, progress)
    best = found[0]
    path = chosen.root / TUNING_FILE
    write_tuning(path, best.stages, **result_of(options, found), conditions=conditions())
    plot(found, slo_ms, path.with_suffix(".png"))
    table = Table("release", "threads x instances, delay", "p95", "answers/s", "memory")
    for trial in found[:SHOWN]:
        latency = f"{trial.latency_ms:.1f} ms"
        shown = latency if trial.within(slo_ms) else f"[red]{latency}[/]"
        cells = (f"{trial.release}: {trial.precision}", described(trial.stages), shown)
        table.add_row(*cells, f"{trial.throughput:.2f}", f"{trial.peak_mb:.0f} MB")
    console.print(table)
    met = "keeps" if best.within(slo_ms) else "[red]nothing keeps[/]"
    console.print(f"release {best.release} {met} within {slo_ms:g} ms; written to {path}", highlight=False)
