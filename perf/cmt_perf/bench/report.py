"""A bench's results for people: bench.json, summary.json, plots and one page that holds everything."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_engine.engine import ENGINES
from cmt_perf.bench.run import BASELINE, CLAIMED_MS, OURS, summary_of
from cmt_perf.bench.tables import NAMES
from cmt_perf.conditions import to_text
from cmt_training.html_page import Part, heading, images, paragraph, preformatted, table
from cmt_training.html_page import page as html_page

COLOURS = ("#b5533c", "#3b6ea5", "#5a9a5a", "#8a5aa0", "#c79a2e", "#555555")
PARTIAL_FILE = "bench.partial.json"
#: Plots that other commands leave in the folder of results.
FURTHER = {"techniques": "Technique by technique", "tuning": "Configurations that were tried"}
#: Figure -> how a table names it and shows it.
FIGURES = {
    "p50_ms": ("p50 ms", "{:,.0f}"),
    "p95_ms": ("p95 ms", "{:,.0f}"),
    "p99_ms": ("p99 ms", "{:,.0f}"),
    "throughput": ("answers/s", "{:.1f}"),
    "cpu_s_per_request": ("CPU s", "{:.2f}"),
    "peak_mb": ("MB", "{:,.0f}"),
    "errors": ("errors", "{:.0f}"),
}


HEAD = tuple(head for head, _ in FIGURES.values())


def keep_part(result: Mapping[str, Any], folder: Path) -> None:
    """What a bench has measured so far: bench.partial.json, until there is a report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PARTIAL_FILE).write_text(to_text(result))


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """bench.json, summary.json, bench.html and a PNG of each plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(to_text(result))
    (folder / "summary.json").write_text(to_text(summary_of(result)))
    for name, png in plots_of(result).items():
        (folder / f"bench_{name}.png").write_bytes(png)
    write_page(folder)
    (folder / PARTIAL_FILE).unlink(missing_ok=True)


def write_page(folder: Path) -> None:
    """bench.html, out of the bench.json in `folder` and every plot there; nothing where no bench has run."""
    if (folder / "bench.json").is_file():
        result = json.loads((folder / "bench.json").read_text())
        further = {
            caption: path.read_bytes()
            for name, caption in FURTHER.items()
            if (path := folder / f"{name}.png").is_file()
        }
        (folder / "bench.html").write_text(page(result, plots_of(result) | further))


def page(result: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """One self-contained HTML page."""
    summary = summary_of(result)
    met = {True: "met", False: "not met"}
    claims = summary["claims"]
    body = [
        heading("Benchmark", 1),
        paragraph(
            f"{summary['ratio_p50']:.2f} times as fast as the conventional system (95 % interval "
            f"{summary['ratio_p50_interval'][0]:.2f} to {summary['ratio_p50_interval'][1]:.2f}), p50 "
            f"{summary['p50_ms']:.1f} ms against {summary['baseline_p50_ms']:.1f} ms, in turns on one machine."
        ),
        table(
            ("the paper claims", "claimed", "measured", ""),
            [
                (
                    "mean response",
                    f"{CLAIMED_MS:.0f} ms",
                    f"{claims['mean_ms']['measured']:.1f} ms",
                    met[claims["mean_ms"]["met"]],
                ),
                (
                    "under a conventional fusion system",
                    f"{claims['saving']['claimed']:.0%}",
                    f"{claims['saving']['measured']:.0%}",
                    met[claims["saving"]["met"]],
                ),
            ],
        ),
        *_against_the_best(summary),
        *_how_far_peers_are_off(result.get("peer_parity", {})),
        heading("Single stream"),
        table(
            ("system", *HEAD, "times as fast"),
            [
                (NAMES.get(name, name), *_cells(figures), _ratio(result["ratios"].get(name)))
                for name, figures in result["single_stream"].items()
            ],
        ),
        heading("Where the time goes"),
        paragraph(
            "Branches run side by side and are never added up; overhead is end to end less the compute of the critical "
            f"path: {result['attribution']['overhead_ms']} ms. Critical: {_critical(result)}."
        ),
        *_rows_of(result["growth"], "How cost grows"),
        *_rows_of(result["open_loop"], "Open loop"),
        heading("Plots"),
        *images(plots),
        heading("perf_analyzer"),
        preformatted(result["perf_analyzer"]),
        heading("Conditions"),
        preformatted({"peaks": result["peaks"], **result["conditions"]}),
    ]
    return html_page("Benchmark", body)


def _against_the_best(summary: Mapping[str, Any]) -> list[Part]:
    parts, best = [], summary["best_peer"]
    if best:
        said = f"{best['ratio']:.2f} times as fast ({best['low']:.2f} to {best['high']:.2f}) as the best of the peers"
        parts.append(paragraph(f"{said}: {NAMES.get(best['name'], best['name'])}."))
    if "share_of_peak" in summary:
        ((precision, peak),) = summary["peak"].items()
        most = f"the {peak:.0f} GFLOP/s that this machine multiplies at most, in {precision}"
        told = f"{summary['share_of_peak']:.0%} of {most}"
        parts.append(paragraph(f"A request is {summary['gflop']:.0f} GFLOP. At its p50 that is {told}."))
    return parts


def _how_far_peers_are_off(parity: Mapping[str, Mapping[str, float]]) -> list[Part]:
    """Of those that compute quantised graphs."""
    parts, most = [], ENGINES["onnxruntime"].tolerance("int8").relative
    for name, errors in parity.items():
        if errors:
            worst = max(errors, key=errors.__getitem__)
            off = f"{NAMES.get(name, name)}: {worst} is {errors[worst]:.2g} off PyTorch fp32, its other stages less"
            parts.append(paragraph(f"{off}; an export of ours is refused beyond {most:g}."))
    return parts


def plots_of(result: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG by name: latency CDF, stage timeline, and what grows where that was measured."""
    made = {
        "latency": drawn(lambda axes: _cdf(axes, result)),
        "timeline": drawn(lambda axes: _timeline(axes, result)),
    }
    if result["growth"]:
        made["growth"] = drawn(lambda axes: _load(axes, result))
        made["load"] = drawn(lambda axes: _open(axes, result))
    return made


def _cdf(axes: Any, result: Mapping[str, Any]) -> None:
    looks = [{"color": colour, "linestyle": line} for line in ("-", "--", ":") for colour in COLOURS]
    for (name, figures), look in zip(result["single_stream"].items(), looks, strict=False):
        latencies = figures["latencies_ms"]
        shares = [(index + 1) / len(latencies) for index in range(len(latencies))]
        axes.step(latencies, shares, where="post", label=name, **look)
    axes.axvline(CLAIMED_MS, color="#888888", linestyle=":", label="the paper's 128 ms")
    axes.set(xlabel="latency in ms", ylabel="share of requests", title="Single stream", xscale="log", ylim=(0, 1.01))
    _plain_numbers(axes.xaxis)
    axes.figure.legend(loc="outside lower center", ncols=2)
    axes.set_ylim(0, 1.01)


def _timeline(axes: Any, result: Mapping[str, Any]) -> None:
    stages = result["attribution"]["stages"]
    names = sorted(stages, key=lambda name: stages[name]["started_at_ms"], reverse=True)
    for row, name in enumerate(names):
        stage = stages[name]
        queued = stage["started_at_ms"] - stage["queued_ms"]
        axes.barh(row, stage["queued_ms"], left=queued, color="#cccccc")
        axes.barh(row, stage["ended_at_ms"] - stage["started_at_ms"], left=stage["started_at_ms"], color=COLOURS[1])
        axes.text(stage["ended_at_ms"], row, f" {stage['compute_ms']:.1f} ms", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.15 * max(stage["ended_at_ms"] for stage in stages.values()))
    axes.set(xlabel="ms since the request arrived (medians; grey: queued)", title="One request in the server")


def _load(axes: Any, result: Mapping[str, Any]) -> None:
    for system, colour in ((BASELINE, COLOURS[0]), (OURS, COLOURS[1])):
        rows = [r for r in result["growth"] if r["system"] == system and r["scenario"].startswith("concurrency")]
        axes.plot([r["throughput"] for r in rows], [r["p50_ms"] for r in rows], "o-", color=colour, label=system)
        for row in rows:
            axes.annotate(
                row["scenario"].split()[1],
                (row["throughput"], row["p50_ms"]),
                textcoords="offset points",
                xytext=(4, 4),
            )
    axes.set(xlabel="answers a second", ylabel="p50 in ms", yscale="log", title="Closed loops (number: how many)")
    _plain_numbers(axes.yaxis)
    axes.legend()


def _open(axes: Any, result: Mapping[str, Any]) -> None:
    rows = result["open_loop"]
    for figure, colour in (("p50_ms", COLOURS[1]), ("p95_ms", COLOURS[4]), ("p99_ms", COLOURS[0])):
        shares = [float(r["scenario"].split()[-1].rstrip("%")) for r in rows]
        axes.plot(shares, [r[figure] for r in rows], "o-", color=colour, label=FIGURES[figure][0].removesuffix(" ms"))
    axes.set(
        xlabel="% of the load that saturates it, at random moments", ylabel="ms", ylim=(0, None), title="Open loops"
    )
    axes.legend()


def _plain_numbers(axis: Any) -> None:
    """200 rather than 2 x 10^2 on a logarithmic axis, and 500 as well, but no crowd."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter(ScalarFormatter())


def drawn(draw: Callable[[Any], None]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 11}):  # to be read on a telephone
        figure, axes = pyplot.subplots(figsize=(6.5, 4.5), layout="constrained")
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150)
    pyplot.close(figure)
    return buffer.getvalue()


def _rows_of(rows: Sequence[Mapping[str, Any]], title: str) -> list[Part]:
    cells = [(f"{r['scenario']}, {r['system']}", *_cells(r)) for r in rows]
    return [heading(title), table(("scenario, system", *HEAD), cells)] if rows else []


def _cells(figures: Mapping[str, Any]) -> list[str]:
    return [shown.format(figures[name]) if name in figures else "" for name, (_, shown) in FIGURES.items()]


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


def _critical(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} in {share:.0%}" for name, share in result["attribution"]["critical"].items())
