"""`cmt perf-input`: what perf_analyzer sends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def perf_input(
    out: Annotated[Path, typer.Argument(help="JSON file to write.")],
    image: Annotated[list[Path] | None, typer.Option(help="Image file; repeatable.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="Sound file; repeatable.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="One utterance; repeatable.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="UTF-8 file with an utterance on each line.")] = None,
) -> None:
    """Writes files and texts as requests for perf_analyzer's --input-data.

    The first image goes with the first sound and the first utterance, and so on; what is given once goes with all.

    Example: [bold]cmt perf-input requests.json --image face.jpg --audio speech.wav --text "Oh no."[/]
    """
    from cmt_cli.show import console
    from cmt_perf.bench.analyzer import input_data
    from cmt_pipeline.pipelines import pipeline_name

    utterances = [*(text or []), *(_lines(text_file) if text_file else [])]
    given: dict[str, Sequence[Any]] = {"image": image or [], "audio": audio or [], "text": utterances}
    items = _items({modality: values for modality, values in given.items() if values})
    out.write_text(json.dumps(input_data(items)))
    console.print(f"wrote {len(items)} requests to {out}; send them with", markup=False, highlight=False)
    command = f"perf_analyzer -m {pipeline_name(items[0])} -i grpc -u 127.0.0.1:8001 --input-data {out}"
    console.print(command, markup=False, highlight=False, soft_wrap=True)


def _items(given: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """ValueError for nothing, or for lists of unequal lengths."""
    counts = {len(values) for values in given.values()}
    if not counts:
        raise ValueError("got no input; expected one or more of --image, --audio, --text, --text-file")
    if len(counts - {1}) > 1:
        told = ", ".join(f"{len(values)} of {modality}" for modality, values in given.items())
        raise ValueError(f"got {told}; expected as many of each, or one")
    return [
        {modality: values[index if len(values) > 1 else 0] for modality, values in given.items()}
        for index in range(max(counts))
    ]


def _lines(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines if line.strip()]
