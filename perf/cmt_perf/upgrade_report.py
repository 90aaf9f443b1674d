"""perf/results/upgrade.json for people: a plot, and the tables of the docs.

python -m cmt_perf.upgrade_report perf/results/upgrade.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = ("#3b6ea5", "#d1793a", "#5a9a5a", "#8a5aa0")
MAX_CELL = 150  # characters of what a driver said


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Answers a second by release above, latency below, the steps of each upgrade behind both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timeline = result["timeline"]
    seconds = [tick["s"] for tick in timeline]
    width = seconds[1] - seconds[0] if len(seconds) > 1 else 1
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained")
    bottom = [0.0] * len(seconds)
    for release, colour in zip(result["by_release"], COLOURS, strict=False):
        rates = [tick["answers"].get(release, 0) / width for tick in timeline]
        above.bar(seconds, rates, width, bottom=bottom, color=colour, label=f"release {release}", align="edge")
        bottom = [a + b for a, b in zip(bottom, rates, strict=True)]
    below.plot(seconds, [tick["p50_ms"] for tick in timeline], color="#444444", label="median")
    below.plot(seconds, [tick["p99_ms"] for tick in timeline], color="#444444", alpha=0.4, label="p99")
    for steps in result["steps"]:
        for axes in (above, below):
            axes.axvspan(
                min(s[0] for s in steps.values()), max(s[1] for s in steps.values()), color="#000000", alpha=0.07
            )
            for name in ("flip", "rollback"):
                if name in steps:
                    axes.axvline(steps[name][1], color="#b03030", linewidth=1)
    above.set(
        ylabel="answers a second",
        title=f"{result['path']}: {result['answers']:,} answers, {result['errors']} errors, {result['mixed']} mixed",
    )
    below.set(xlabel="seconds (grey: an upgrade or rollback at work; red: all pipelines moved)", ylabel="latency in ms")
    below.set_ylim(bottom=0)
    above.legend(loc="upper right")
    below.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def summary_table(result: Mapping[str, Any]) -> str:
    """The table of docs/upgrades.md, in Markdown."""
    naive = result["naive"]
    wrong = naive["mixed"] + naive["mislabelled"]
    lines = [
        "| | `cmt upgrade` | the naive way: steps at the latest version |",
        "| --- | --- | --- |",
        f"| answers | {result['answers']:,} | {naive['answers']:,} |",
        f"| errors | {result['errors']} | {naive['errors']} |",
        f"| lost | {result['lost']} | {naive['lost']} |",
        f"| made by two releases, or by another than they name | {result['mixed'] + result['mislabelled']} | {wrong} |",
        f"| p99 latency during a flip, over that before | {result['p99_ratio']:.2f} | |",
        f"| p99 latency during a whole upgrade, over that before | {result['p99_ratio_whole_upgrade']:.2f} | |",
        f"| memory: one release, two, after the old one left | {_memory(result['memory'])} | |",
    ]
    return "\n".join(lines) + "\n"


def page(result: Mapping[str, Any]) -> str:
    """upgrade.md: conditions, what was measured, and every fault with what became of it."""
    conditions = result["conditions"]
    told = {name: conditions[name] for name in ("date", "commit", "cpu", "cores", "cpu_features", "load_average")}
    lines = [
        "# Upgrades under load",
        "",
        "Written by `make bench-upgrade`; every figure is in [upgrade.json](upgrade.json), with all its conditions.",
        "",
        *(f"- {name}: {value}" for name, value in {**told, **conditions["release"]}.items()),
        f"- path: {result['path']}; traffic: {conditions['traffic']}",
        "",
        summary_table(result),
        "![Answers by release and latency](upgrade.png)",
        "",
        "## Faults",
        "",
        "Each on a server of its own, under the same traffic without retries. Lost: requests that a server had taken",
        "on and didn't answer. Turned away: those that met no server, or one that refused more; clients ask again by",
        "themselves, and each closed loop here does about 20 times a second.",
        "",
        "| fault | what happened | answers | lost | turned away | mixed | live afterwards |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["faults"]:
        said = row["what_happened"].replace("|", "/")
        said = said if len(said) <= MAX_CELL else said[: MAX_CELL - 1] + "…"
        live = f"{row['live_after']}" if row["right"] else f"{row['live_after']}, WRONG"
        lines.append(
            f"| {row['fault']} | {said} | {row['answers']:,} | {row['requests_lost']} | {row.get('turned_away', '')} "
            f"| {row['mixed']} | {live} |"
        )
    return "\n".join(lines) + "\n"


def _memory(memory: Mapping[str, float]) -> str:
    return ", ".join(f"{memory[name]:.0f} MB" for name in ("one_release_mb", "two_releases_mb", "after_retire_mb"))


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[1]).with_suffix(".md").write_text(page(found))
    print(summary_table(found), end="")
