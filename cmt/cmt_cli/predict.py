"""`cmt predict`: one item to a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption


def predict(
    image: Annotated[Path | None, typer.Option(help="JPEG, PNG or WebP file.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Sound: WAV, MP3, FLAC, Ogg, M4A, WebM, AMR and others.")] = None,
    text: Annotated[str | None, typer.Option(help="One utterance.")] = None,
    video: Annotated[Path | None, typer.Option(help="A film instead of image and sound: MP4, MOV, WebM, MKV.")] = None,
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

    Example: [bold]cmt predict --image face.jpg --audio speech.wav --text "I can't believe it!"[/]
    """
    from cmt_cli.show import console, emotion_table, window_table
    from cmt_client import EmotionClient, LongEmotion

    with EmotionClient(State(state).url(url), timeout_s=timeout_s) as client:
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
