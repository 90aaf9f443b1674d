"""`cmt predict`: one item, or a folder of them, to a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from cmt_client import EmotionClient
    from cmt_client.folder import FolderOptions, FolderReport

PARQUET = ".parquet"


def predict(
    image: Annotated[Path | None, typer.Option(help="Picture: JPEG, PNG, WebP, HEIC, AVIF and others.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Sound: WAV, MP3, FLAC, Ogg, M4A, WebM, AMR and others.")] = None,
    text: Annotated[str | None, typer.Option(help="One utterance.")] = None,
    video: Annotated[Path | None, typer.Option(help="A film instead of image and sound: MP4, MOV, WebM, MKV.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of items instead: files that differ in their suffix alone are one.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Answers to the folder's items: a .jsonl or .parquet file; started again, goes on."),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Items of a folder that are asked for at a time.")] = 8,
    window_s: Annotated[
        float | None, typer.Option(help="Longest window, in seconds, of a longer sound; the limit by default.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="grpc://host:port or http://host:port; the server running here by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for the answer, retries included.")] = 30.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Asks a server for the emotion of an image, a sound, a text, or any combination.

    A sound longer than a window is answered as a whole and window by window; image and text go with each.

    With a folder, exits with 2 if the input of some items was refused, with 1 if others failed too.

    Example: [bold]cmt predict --image face.jpg --audio speech.wav --text "I can't believe it!"[/]
    """
    from cmt_cli.show import console, emotion_table, window_table
    from cmt_client import EmotionClient, LongEmotion

    _check_options(folder, output, given=any(value is not None for value in (image, audio, text, video)))
    with EmotionClient(State(state).url(url), timeout_s=timeout_s) as client:
        if folder is not None and output is not None:
            from cmt_client.folder import FolderOptions

            raise typer.Exit(_predict_folder(client, folder, output, FolderOptions(concurrency, window_s)))
        if video is not None:
            if image is not None or audio is not None:
                raise typer.BadParameter("got a film and an image or a sound; expected the film alone, or with text")
            answer = client.predict_video(video, text=text, window_s=window_s)
        elif audio is None:
            answer = LongEmotion(client.predict(image=image, text=text))
        else:
            answer = client.predict_long(image=image, audio=audio, text=text, window_s=window_s)
    if as_json:
        typer.echo(json.dumps(answer.to_json()))
        return
    console.print(emotion_table(answer.whole))
    if answer.windows:
        console.print(window_table(answer.windows))


def _check_options(folder: Path | None, output: Path | None, given: bool) -> None:
    """ValueError for options that don't go together."""
    if (folder is None) != (output is None):
        raise ValueError("got one of --folder and --output; expected both, or neither")
    if folder is not None and given:
        raise ValueError("got --folder beside --image, --audio, --text or --video; expected either")
    if output is not None and output.suffix not in (".jsonl", PARQUET):
        raise ValueError(f"--output: got {output}; expected a .jsonl or {PARQUET} file")


def _predict_folder(client: EmotionClient, folder: Path, output: Path, options: FolderOptions) -> int:
    """Answers a folder, and says so; the exit status."""
    from cmt_cli.show import EXIT_INPUT, EXIT_SERVICE, console, progress_bar
    from cmt_client.folder import predict_folder
    from cmt_client.parquet import check_pyarrow, parquet_from_journal

    as_parquet = output.suffix == PARQUET
    if as_parquet:
        check_pyarrow()
    journal = output.with_name(output.name + ".jsonl") if as_parquet else output
    with progress_bar("predict") as progress:
        report = predict_folder(client, folder, journal, options, progress)
    if as_parquet:
        parquet_from_journal(journal, output)
    console.print(f"{_summary(report)}: {output}", highlight=False, markup=False, soft_wrap=True)
    if not report.errors:
        return 0
    return EXIT_INPUT if report.at_fault else EXIT_SERVICE


def _summary(report: FolderReport) -> str:
    failed = ", ".join(f"{count} {code}" for code, count in sorted(report.errors.items()))
    told = f"{report.items} items: {report.answered} answered, {report.before} before"
    return f"{told}, failed: {failed}" if failed else told
