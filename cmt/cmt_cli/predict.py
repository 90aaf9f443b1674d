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
    url: Annotated[
        str | None,
        typer.Option(help="grpc://host:port or http://host:port; the server running here by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for the answer, retries included.")] = 30.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Asks a server for the emotion of an image, a sound, a text, or any combination.

    Example: [bold]cmt predict --image face.jpg --audio speech.wav --text "I can't believe it!"[/]
    """
    from cmt_cli.show import console, emotion_table
    from cmt_client import EmotionClient

    with EmotionClient(State(state).url(url), timeout_s=timeout_s) as client:
        emotion = client.predict(image=image, audio=audio, text=text)
    if as_json:
        typer.echo(json.dumps(emotion.to_json()))
    else:
        console.print(emotion_table(emotion))
