"""`cmt bench`: how fast a release is, beside the conventional system."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from rich.table import Table

    from cmt_release.release import Release


def bench(
    release: Annotated[int | None, typer.Argument(help="Release number; the newest by default.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Take the newest release of this precision: fp32, bf16, int8, …")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the release, for peers to serve; made anew for an untrained release."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; in each, every system gets one turn.")] = 6,
    requests: Annotated[int, typer.Option(help="Requests measured in each turn.")] = 30,
    audio_s: Annotated[float, typer.Option(help="Seconds of sound in each request.")] = 4.0,
    text_tokens: Annotated[int, typer.Option(help="Tokens in each request.")] = 64,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Also measure fastapi, pytriton or bentoml; with :compiled, :torchao, :onnxruntime or :openvino, as "
            "its users would make it fast. Repeatable."
        ),
    ] = None,
    tuning: Annotated[Path | None, typer.Option(help="File that `cmt tune` wrote for this machine.")] = None,
    same_model: Annotated[
        bool,
        typer.Option(
            "--same-model", help="Also measure the conventional model through our pipeline; exports it first."
        ),
    ] = False,
    growth: Annotated[
        bool, typer.Option(help="Also measure growth with concurrency, batch and length, and open loops.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the requests.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("perf/results"),
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Measures a release beside the conventional system, in turns, and writes a report.

    The conventional system is self-attention over all tokens of the same three encoders, in eager PyTorch fp32, one
    Triton model. Its weights are random: they take the same time. Keep the machine quiet.

    Example: [bold]cmt bench --rounds 6 --peer fastapi[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_perf.bench.report import keep_part, write_report
    from cmt_perf.bench.run import BenchOptions, conventional
    from cmt_perf.bench.run import bench as measured
    from cmt_perf.bench.scenarios import Size
    from cmt_release.release import newest_release, open_release
    from cmt_server.repository import InstallOptions
    from cmt_server.tuning import read_tuning

    if release is not None and precision is not None:
        raise ValueError(f"got release {release} with --precision {precision}; expected one of them")
    chosen = State(state)
    served = newest_release(chosen.releases, precision) if precision else open_release(chosen.releases, release)
    baseline = conventional(served, chosen.root / "bench")
    options = BenchOptions(
        release=served,
        baseline=baseline,
        install=InstallOptions(tuning=read_tuning(tuning)) if tuning else None,
        same_model=_through_the_pipeline(served, baseline, chosen.root / "bench") if same_model else None,
        checkpoint=checkpoint or (_made_anew(served, chosen.root / "bench") if peer else None),
        peers=tuple(peer or ()),
        rounds=rounds,
        requests=requests,
        size=Size(audio_s=audio_s, text_tokens=text_tokens),
        growth=growth,
        seed=seed,
    )
    with progress_bar("bench") as progress:
        result = measured(options, progress, partial(keep_part, folder=out))
    write_report(result, out)
    console.print(bench_table(result))
    console.print(f"written to {out}", highlight=False)


def _through_the_pipeline(like: Release, checkpoint: Path, folder: Path) -> Release:
    """A release of the baseline's checkpoint, by the engine and in the precision of the one that it stands beside."""
    from cmt_cli.export import run_export
    from cmt_export.export import ExportOptions

    info = like.manifest.info
    options = ExportOptions(
        preset=info.preset,
        checkpoint=checkpoint,
        engine=info.engine,
        precision=info.precision,
    )
    return run_export(options, State(folder))


def _made_anew(like: Release, folder: Path) -> Path | None:
    """The checkpoint of an untrained release, for peers; None for what training made."""
    from cmt_perf.bench.run import conventional

    return None if like.manifest.info.trained else conventional(like, folder, "cmt")


def bench_table(result: dict[str, Any]) -> Table:
    """A row for each system: latencies, processor time a request, memory, and how many times as fast it is."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("single stream", box=SIMPLE)
    for column in ("p50 ms", "p95 ms", "CPU s", "MB", "times as fast"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, figures in result["single_stream"].items():
        ratio = result["ratios"].get(name)
        table.add_row(
            name,
            *(f"{figures[measure]:.1f}" for measure in ("p50_ms", "p95_ms")),
            f"{figures['cpu_s_per_request']:.2f}",
            f"{figures['peak_mb']:.0f}",
            f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "",
        )
    return table
