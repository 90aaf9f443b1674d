"""The README's table of what was measured, out of the results in the repository.

python -m cmt_perf.headline
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmt_perf.bench.tables import NAMES
from cmt_training.compare.results import OURS, Results

ROOT = Path("perf/results")
TRAINING = Path("training/results")


def headline_table(root: Path = Path()) -> str:
    """Markdown: what, its figure, where and when it was measured. root: of the repository."""
    head = "| measured | result | conditions |\n| --- | --- | --- |\n"
    return head + "".join(f"| {what} | {result} | {told} |\n" for what, result, told in rows_of(root))


def rows_of(root: Path) -> Iterator[tuple[str, str, str]]:
    """A row for each result."""
    yield from _speed(_read(root / ROOT / "summary.json"))
    yield _precision(_read(root / ROOT / "precision.json"))
    yield _upgrade(_read(root / ROOT / "upgrade.json"))
    yield _capacity(_read(root / ROOT / "capacity.json"))
    yield _sessions(_read(root / ROOT / "sessions.json"))
    yield _interplay(Results.from_json((root / TRAINING / "generated.json").read_text()))


def _speed(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    low, high = summary["ratio_p50_interval"]
    fusion = summary["conditions"]["release"]["fusion"]
    where = _where(summary["conditions"], "bench.html")
    told = f"`base` int8 with `{fusion}` fusion, one request at a time, 4 s of sound; {where}"
    yield (
        "latency beside a conventional fusion in eager PyTorch",
        f"p50 {summary['p50_ms']:.0f} ms against {summary['baseline_p50_ms']:.0f} ms: "
        f"**{summary['ratio_p50']:.1f} times as fast** [{low:.1f}, {high:.1f}]",
        told,
    )
    best = summary["best_peer"]
    name, times = NAMES[best["name"]].removeprefix("CMT in "), [best[of] for of in ("ratio", "low", "high")]
    yield (
        "latency beside the best of the servers tuned as their users would, same weights",
        "**{:.2f} times as fast** [{:.2f}, {:.2f}] as ".format(*times) + name,
        "as above; that one's int8 is off the model: [Performance](docs/performance.md#how-fast)",
    )
    mean, saving = summary["claims"]["mean_ms"], summary["claims"]["saving"]
    yield (
        f"the paper's claims: {mean['claimed']:.0f} ms, {_percent(saving['claimed'])} less than conventional fusion",
        f"mean {mean['measured']:.0f} ms: **{_met(mean)}** on this machine; "
        f"{_percent(saving['measured'])} less: {_met(saving)}",
        "as above",
    )


def _precision(result: Mapping[str, Any]) -> tuple[str, str, str]:
    found = {row["precision"]: row for row in result["rows"]}
    full, small = found["fp32"], found["int8"]
    return (
        "what int8 costs",
        f"weighted F1 {small['weighted_f1']:.3f} against {full['weighted_f1']:.3f} in fp32; "
        f"{_percent(small['as_fp32'], 1)} the same label",
        f"`mini`, {full['count']} generated items; {_where(result['conditions'], 'precision.json')}",
    )


def _upgrade(result: Mapping[str, Any]) -> tuple[str, str, str]:
    wrong = result["mixed"] + result["mislabelled"]
    return (
        "three moves between releases under load",
        f"{result['answers']:,} answers, **{result['lost'] + result['errors']} lost, {wrong} wrong**; "
        f"p99 during a flip {result['p99_ratio']:.2f} times that before",
        f"`mini` bf16; {_where(result['conditions'], 'upgrade.md')}",
    )


def _sessions(result: Mapping[str, Any]) -> tuple[str, str, str]:
    raw, tracked = (
        next(row for row in result["rows"] if (row["scenario"], row["method"]) == ("usual", method))
        for method in ("single answers, argmax", "+ hysteresis: tracked")
    )
    told = result["conditions"]
    return (
        "labels over time: single answers, and tracked",
        f"{raw['changes_shown_per_min']:.0f} and **{tracked['changes_shown_per_min']:.1f} changes a minute**; "
        f"agreement with the truth {raw['agreement']:.2f} and {tracked['agreement']:.2f}; "
        f"delay {raw['delay_p50_s']:.1f} s and {tracked['delay_p50_s']:.1f} s",
        f"{told['sessions']} generated sessions of {told['seconds'] / 60:.0f} minutes; "
        "[sessions.json](perf/results/sessions.json)",
    )


def _capacity(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        "predicted latency at up to 80 % of saturation",
        f"p95 within {_percent(result['worst_p95_off'])} of what was measured",
        f"`mini` bf16; {_where(result['curve']['conditions'], 'capacity.json')}",
    )


def _interplay(results: Results) -> tuple[str, str, str]:
    ladder = results.corpora["interplay"]
    f1, loss = (next(m for m in ladder.margins if m.measure == name) for name in ("weighted_f1", "cross_entropy"))
    ours, other = (ladder.rungs[name].weighted_f1 for name in (OURS, f1.other))
    told = [
        f"{m.percent:+.1f} % (the paper's {m.claimed_percent:+.1f} %: {'met' if m.met else 'not met'})"
        for m in (f1, loss)
    ]
    return (
        f"cross-modal attention beside the best other fusion ({f1.other}), same tokens",
        f"weighted F1 {ours.mean:.3f} against {other.mean:.3f}: {told[0]}; cross-entropy {told[1]}",
        f"generated talk **built so that no sum of evidence reads it**, {len(ours.values)} seeds; "
        "[generated.json](training/results/generated.json)",
    )


def _where(conditions: Mapping[str, Any], file: str) -> str:
    return f"{conditions['cores']} cores {conditions['cpu']}, {conditions['date'][:10]}; [{file}]({ROOT / file})"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _met(claim: Mapping[str, Any]) -> str:
    return "met" if claim["met"] else "not met"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    print(headline_table(), end="")
