"""Every kind of sound file that is accepted gives the sound that was put in, by our decoder and by independent ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cmt_pipeline.audio import decode_audio
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from media.sounds import RATE_HZ, SECONDS, SOUNDS, difference, encoded, likeness, saved, sound, with_unknown_sizes
from small_media import write_video


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: made.make() for name, made in SOUNDS.items()}


@pytest.mark.parametrize("name", SOUNDS)
def test_the_sound_that_was_put_in_comes_out(files: dict[str, bytes], name: str) -> None:
    made, came = SOUNDS[name], decode_audio(files[name])
    if made.error is not None:
        assert difference(came) <= made.error
        return
    alike, later_s = likeness(came, sound())
    assert alike >= made.alike
    assert later_s == pytest.approx(made.later_s, abs=0.007)
    assert len(came) / RATE_HZ == pytest.approx(SECONDS + made.longer_s, abs=0.045)


@pytest.mark.parametrize(
    ("name", "suffix", "command", "unlike"),
    [
        ("M4A, AAC", "m4a", "faad -q -o", 0.001),
        ("AAC, a bare stream", "aac", "faad -q -o", 0.001),
        ("AMR", "amr-nb", "sox", 0.03),  # in integers; FFmpeg's is in floats
        ("MP3", "mp3", "sox", 0.001),
        ("MP3, variable, no header", "mp3", "sox", 0.001),
        ("Ogg, Vorbis", "ogg", "sox", 0.001),
        ("AIFF", "aiff", "sox", 0.001),
    ],
)
def test_an_independent_decoder_agrees(
    files: dict[str, bytes], tmp_path: Path, name: str, suffix: str, command: str, unlike: float
) -> None:
    """FAAD2, opencore-amr, libmad, libvorbis: none is FFmpeg's."""
    tool = command.split()[0]
    if not shutil.which(tool):
        pytest.skip(f"no {tool} here")
    path, wav = tmp_path / f"sound.{suffix}", tmp_path / "sound.wav"
    path.write_bytes(files[name])
    places = [str(wav), str(path)] if tool == "faad" else [str(path), str(wav)]
    subprocess.run([*command.split(), *places], check=True, capture_output=True)
    alike, _ = likeness(decode_audio(files[name]), decode_audio(wav.read_bytes()))
    assert alike > 1 - unlike


CUT = {
    "M4A, index last": lambda: encoded("ipod", "aac")[:4_000],
    "M4A, index first": lambda: encoded("ipod", "aac", movflags="faststart")[:4_000],
    "MP4, a fragment": lambda: encoded("mp4", "aac", movflags="frag_keyframe+empty_moov+default_base_moof")[:4_000],
    "WebM": lambda: encoded("webm", "libopus", 48_000)[:4_000],
    "AIFF": lambda: saved("AIFF", "PCM_16")[:4_000],
    "CAF": lambda: encoded("caf", "pcm_s16le")[:4_000],
    "Ogg": lambda: saved("OGG", "OPUS")[:-1],
}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_refused_where_it_can_be_known(name: str) -> None:
    assert refusal(CUT[name]()).code == "cut"


def test_what_was_streamed_is_read_as_far_as_it_came() -> None:
    came = decode_audio(with_unknown_sizes(encoded("webm", "libopus", 48_000, live=1))[:4_000])
    assert 0.2 < len(came) / RATE_HZ < 0.7


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    assert refusal(write_video(tmp_path / "film.mp4", layout=None).read_bytes()).code == "no_sound"


def test_a_films_sound_is_heard(tmp_path: Path) -> None:
    came = decode_audio(write_video(tmp_path / "film.mp4", layout="mono").read_bytes())
    assert len(came) / RATE_HZ == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "ac3"), ("mov", "adpcm_ima_qt"), ("avi", "mp2"), ("ogg", "speex")]
)
def test_what_few_people_have_is_refused_by_name(container: str, codec: str) -> None:
    data = encoded(container, codec, 48_000) if codec != "speex" else b"OggS" + bytes(24) + b"Speex   " + bytes(80)
    assert refusal(data).code in ("wrong_format", "not_decodable")


@pytest.mark.parametrize("channels", [1, 2])
def test_too_many_channels_and_too_much_sound_are_refused(channels: int) -> None:
    data = encoded("ipod", "aac", channels=channels)
    assert refusal(data, Limits(max_audio_s=0.5)).code == "too_long"
    if channels > 1:
        assert refusal(data, Limits(max_audio_channels=1)).code == "channels"


def refusal(data: bytes, limits: Limits = DEFAULT_LIMITS) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        decode_audio(data, limits)
    return raised.value
