"""`cmt plan`: how many pods and nodes a rate of requests needs, from what one server was measured to do."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from rich.table import Table

    from cmt_perf.capacity import ServiceCurve
    from cmt_perf.sizing import Plan

CURVE_FILE = "curve.json"


def plan(
    rate: Annotated[float, typer.Option(help="Requests per second, on average.")],
    slo_ms: Annotated[float, typer.Option(help="Latency bound in ms.")],
    percentile: Annotated[float, typer.Option(help="Share of requests that must keep the bound, 0.5 to 1.")] = 0.95,
    peak: Annotated[float, typer.Option(help="Peak rate over the average rate.")] = 1.0,
    curve: Annotated[
        Path | None, typer.Option(help="File of a server's measured service curve; STATE/curve.json by default.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the running server first; takes minutes.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="grpc://host:port of the server to measure.")] = None,
    node_cores: Annotated[int, typer.Option(help="Cores of a node.")] = 16,
    node_memory_gib: Annotated[float, typer.Option(help="Memory of a node in GiB.")] = 64.0,
    pod_memory_gib: Annotated[float, typer.Option(help="Memory that a pod requests in GiB.")] = 4.0,
    zones: Annotated[int, typer.Option(help="Zones of the cluster; the plan holds with one of them lost.")] = 3,
    start_s: Annotated[float, typer.Option(help="Seconds from a pod's creation to its first answer.")] = 60.0,
    release_mib: Annotated[float, typer.Option(help="Size of the release in MiB, which every pod pulls.")] = 1_000.0,
    node_price: Annotated[float | None, typer.Option(help="Price of a node per hour, in any currency.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Says how many pods and nodes a request rate needs, and how that grows.

    Example: [bold]cmt plan --rate 5000 --slo-ms 500 --curve perf/results/capacity.json[/]
    """
    from cmt_cli.show import console
    from cmt_perf.sizing import Demand, Machines, growth

    path = curve or State(state).root / CURVE_FILE
    if measure:
        _measure(path, State(state), url)
    found = _curve(path)
    machines = Machines(node_cores, node_memory_gib, pod_memory_gib, zones, start_s, release_mib, node_price)
    plans = growth(found, Demand(rate, slo_ms, percentile, peak), machines)
    if as_json:
        typer.echo(json.dumps([asdict(made) for made in plans]))
        return
    first = plans[0]
    console.print(
        f"One pod of {found.cores} cores takes {first.per_replica:.1f} requests a second with {percentile:.0%} within "
        f"{slo_ms:g} ms ({first.per_replica / found.saturation:.0%} of what saturates it). The numbers below hold with "
        f"one of {zones} zones gone; latencies are with all there.",
        highlight=False,
    )
    console.print(_table(plans))
    for made in plans:
        for limit in made.limits:
            console.print(f"{made.rate:,.0f}/s: {limit}", highlight=False)


def _measure(path: Path, state: State, url: str | None) -> None:
    from cmt_cli.show import console, progress_bar
    from cmt_perf.conditions import conditions
    from cmt_perf.service import measure
    from cmt_perf.traffic import TrafficPlan
    from cmt_release.durable import replace_file

    target = state.url(url)
    if not target.startswith("grpc://"):
        raise ValueError(f"url: got {target!r}; expected grpc://host:port")
    traffic = TrafficPlan(target, target, full=True)
    with progress_bar("measure") as progress:
        found = measure(
            traffic, progress, cores=len(os.sched_getaffinity(0)), conditions=conditions(traffic=asdict(traffic))
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, found.to_json().encode(), path.parent)
    console.print(f"measured; written to {path}", highlight=False)


def _curve(path: Path) -> ServiceCurve:
    """A curve's file, or a trial's, which holds one."""
    from cmt_perf.capacity import ServiceCurve
    from cmt_release.typed_json import parsed

    if not path.is_file():
        raise ValueError(
            f"{path} isn't there; expected what a server was measured to do: run `cmt serve`, then `cmt plan "
            "--measure` beside it, or name such a file with --curve"
        )
    try:
        values = parsed(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} isn't JSON ({error}): measure again with --measure") from None
    return ServiceCurve.from_json(
        json.dumps(values.get("curve", values) if isinstance(values, dict) else values), str(path)
    )


def _table(plans: list[Plan]) -> Table:
    from rich.table import Table

    priced = plans[0].price_per_hour is not None
    table = Table()
    heads = ["requests/s", "pods", "load", "p50", "p95", "nodes", "clusters", "network", "upgrade pulls"]
    for head in heads + (["price/h", "price/million"] if priced else []):
        table.add_column(head, justify="right")
    for made in plans:
        row = [
            f"{made.rate:,.0f}",
            f"{made.replicas:,}",
            f"{made.load:.0%}",
            f"{made.p50_ms:.0f} ms",
            f"{made.p95_ms:.0f} ms",
            f"{made.nodes:,}",
            f"{made.clusters:,}",
            f"{made.network_gbps:.3g} Gb/s",
            f"{made.upgrade_pull_gbps:.3g} Gb/s",
        ]
        if made.price_per_hour is not None and made.price_per_million is not None:
            row += [f"{made.price_per_hour:,.2f}", f"{made.price_per_million:,.2f}"]
        table.add_row(*row)
    return table
