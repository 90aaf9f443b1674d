"""A folder of files: which are one item, what stands in their rows, and how a run goes on after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from cmt_client import EmotionClient, FakeTransport, InvalidInput, Overloaded, ServerUnavailable, Sound
from cmt_client.arrays import wav_from_sound
from cmt_client.folder import FolderOptions, FolderReport, items_in, predict_folder
from cmt_client.journal import open_journal
from cmt_client.operations import Infer, InferAnswer
from cmt_client.parquet import parquet_from_journal
from cmt_pipeline.limits import DEFAULT_LIMITS
from small_media import write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "items"
    for name in ("a.JPG", "a.wav", "a.txt", "b/a.png", "b/c.d.txt", "notes.md", ".hidden.txt", ".git/x.txt", "z.pdf"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"\ufeff{name}\n")
    (folder / "a.wav").write_bytes(sound(1))
    return folder


def sound(seconds: int) -> bytes:
    return wav_from_sound(Sound(np.ones(seconds * 4_000, np.int16), 4_000), DEFAULT_LIMITS)


def answered(folder: Path, output: Path, fake: FakeTransport, **options: Any) -> FolderReport:
    with EmotionClient("fake:1", transport=fake, retries=0) as client:
        return predict_folder(client, folder, output, FolderOptions(**options))


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def texts(fake: FakeTransport) -> set[str]:
    return {
        call.inputs["text"][0, 0].decode() for call in fake.calls if isinstance(call, Infer) and "text" in call.inputs
    }


def test_files_of_one_name_are_one_item(folder: Path) -> None:
    found = {
        item.name: {m: [str(path) for path in paths] for m, paths in item.files.items()} for item in items_in(folder)
    }
    assert found == {
        "a": {"image": ["a.JPG"], "audio": ["a.wav"], "text": ["a.txt"]},
        "b/a": {"image": ["b/a.png"]},
        "b/c.d": {"text": ["b/c.d.txt"]},
    }
    with pytest.raises(ValueError, match="expected a folder"):
        items_in(folder / "a.txt")


def test_a_row_tells_files_and_answer(folder: Path, tmp_path: Path) -> None:
    fake, output, seen = FakeTransport(), tmp_path / "new" / "answers.jsonl", []
    with EmotionClient("fake:1", transport=fake) as client:
        report = predict_folder(client, folder, output, progress=lambda what, done: seen.append((what, done)))
    assert report == FolderReport(3, 0, 3, {}, True)
    assert seen == [("33 % of 3 items", 1 / 3), ("66 % of 3 items", 2 / 3), ("100 % of 3 items", 1)]
    assert texts(fake) == {"a.txt", "b/c.d.txt"}
    first, second, _ = rows(output)
    assert [row["item"] for row in rows(output)] == ["a", "b/a", "b/c.d"]
    assert (first["image"], first["audio"], first["text"]) == ("a.JPG", "a.wav", "a.txt")
    assert (second["image"], second["audio"], second["text"]) == ("b/a.png", None, None)
    assert (first["label"], first["release"], first["modalities"]) == ("joy", 1, ["image", "audio", "text"])
    assert first["probabilities"]["joy"] == pytest.approx(0.6)
    assert (first["error"], first["windows"]) == (None, [])
    assert [path.name for path in output.parent.iterdir()] == ["answers.jsonl"]


def test_a_long_sound_has_its_windows_in_the_row(folder: Path, tmp_path: Path) -> None:
    (folder / "a.wav").write_bytes(sound(5))
    answered(folder, tmp_path / "answers.jsonl", FakeTransport(), window_s=2)
    windows = rows(tmp_path / "answers.jsonl")[0]["windows"]
    assert [round(w["start_s"], 2) for w in windows] == [0, 1.67, 3.33]
    assert windows[0]["label"] == "joy"


def test_a_film_is_an_item_alone_or_with_text(tmp_path: Path) -> None:
    folder, output, fake = tmp_path / "items", tmp_path / "answers.jsonl", FakeTransport()
    write_video(folder / "a.mp4", seconds=3)
    write_video(folder / "b.mp4")
    (folder / "a.txt").write_text("text")
    (folder / "b.wav").write_bytes(sound(1))
    report = answered(folder, output, fake, window_s=2)
    film, refused = rows(output)
    assert (film["video"], film["audio"], film["modalities"]) == ("a.mp4", None, ["image", "audio", "text"])
    assert len(film["windows"]) == 2
    assert report.errors == {"video.ambiguous": 1}
    assert (refused["video"], refused["audio"], refused["label"]) == ("b.mp4", "b.wav", None)


def test_errors_are_rows_and_asked_again(folder: Path, tmp_path: Path) -> None:
    (folder / "b/a.jpg").write_bytes(b"another image of b/a")
    (folder / "b/c.d.txt").write_bytes(b"\xff\xfe")
    (folder / "c.txt").write_text("refused")
    (folder / "d.txt").write_text("too much at once")
    fake, output = FakeTransport(), tmp_path / "answers.jsonl"
    (folder / "a.txt").write_text("x" * 9_000)
    fake.fail(InvalidInput("text", "empty", "got none"), Overloaded("full"))
    report = answered(folder, output, fake, concurrency=1)
    assert {row["item"]: (row["error"]["field"], row["error"]["code"]) for row in rows(output)} == {
        "a": ("text", "too_large"),
        "b/a": ("image", "ambiguous"),
        "b/c.d": ("text", "not_utf8"),
        "c": ("text", "empty"),
        "d": (None, "Overloaded"),
    }
    assert rows(output)[1]["error"]["message"] == "got a.jpg and a.png of one item; expected one image"
    assert rows(output)[1]["image"] == "b/a.jpg b/a.png"
    assert all(row["label"] is None for row in rows(output))
    assert report.errors == {
        "text.too_large": 1,
        "image.ambiguous": 1,
        "text.not_utf8": 1,
        "text.empty": 1,
        "Overloaded": 1,
    }
    assert (report.answered, report.at_fault) == (0, False)
    (folder / "b/a.jpg").unlink()
    report = answered(folder, output, fake)
    assert (report.before, report.answered, report.at_fault) == (0, 3, True)
    assert sorted(row["item"] for row in rows(output)) == ["a", "b/a", "b/c.d", "c", "d"]


def test_a_run_goes_on_where_another_ended(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    answered(folder, output, FakeTransport())
    whole = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(whole[0] + whole[2][:40])
    (folder / "new.txt").write_text("new")
    fake = FakeTransport()
    report = answered(folder, output, fake)
    assert (report.items, report.before, report.answered) == (4, 1, 3)
    assert texts(fake) == {"b/c.d.txt", "new"}
    assert [row["item"] for row in rows(output)] == ["a", "b/a", "b/c.d", "new"]
    assert output.read_bytes().startswith(whole[0])
    assert answered(folder, output, fake) == FolderReport(4, 4, 0, {}, True)


def test_without_a_server_it_ends_and_keeps_what_it_has(folder: Path, tmp_path: Path) -> None:
    output, fake, healthy = tmp_path / "answers.jsonl", FakeTransport(), FakeTransport()

    def answer(request: Infer) -> InferAnswer:
        if "audio" not in request.inputs:
            raise ServerUnavailable("gone")
        return healthy.call(request, 1)

    fake.answer(Infer, answer)
    with pytest.raises(ServerUnavailable):
        answered(folder, output, fake, concurrency=1)
    assert [row["item"] for row in rows(output)] == ["a"]


@pytest.mark.parametrize(
    "content", ["no answers\n", "{}\n", "[1]\n", '{"item": "a", "error": null}\nthe end', "the end"]
)
def test_a_file_of_something_else_is_left_alone(folder: Path, tmp_path: Path, content: str) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text(content)
    with pytest.raises(ValueError, match="no answer to an item"):
        answered(folder, output, FakeTransport())
    assert output.read_text() == content
    assert [path.name for path in tmp_path.glob("*answers*")] == ["answers.jsonl"]


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with open_journal(output) as journal:
        with pytest.raises(ValueError, match="another process"), open_journal(output):
            pass
        journal.append({"item": "a", "error": None})
    with open_journal(output) as journal:
        assert journal.answered == {"a"}


def test_a_name_that_is_no_unicode_has_a_row(tmp_path: Path) -> None:
    folder, output = tmp_path / "items", tmp_path / "answers.jsonl"
    folder.mkdir()
    Path(folder, b"caf\xe9.txt".decode("utf-8", "surrogateescape")).write_text("text")
    answered(folder, output, FakeTransport())
    parquet_from_journal(output, tmp_path / "answers.parquet")
    assert [row["item"] for row in rows(output)] == [r"caf\udce9"]
    assert answered(folder, output, FakeTransport()).before == 1


def test_parquet_holds_the_same_rows(folder: Path, tmp_path: Path) -> None:
    journal, output = tmp_path / "answers.jsonl", tmp_path / "answers.parquet"
    (folder / "a.wav").write_bytes(sound(5))
    (folder / "b/c.d.txt").write_bytes(b"\xff\xfe")
    answered(folder, journal, FakeTransport(), window_s=2)
    for _ in range(2):
        parquet_from_journal(journal, output)
    table = pyarrow.parquet.read_table(output)
    expected = rows(journal)
    assert table.column_names == list(expected[0])
    for row, found in zip(expected, table.to_pylist(maps_as_pydicts="strict"), strict=True):
        assert found == {**row, "windows": row["windows"] or []}
    assert [path.name for path in tmp_path.glob("*.parquet*")] == ["answers.parquet"]


@pytest.mark.parametrize("concurrency", [0, -1])
def test_nobody_at_work_is_refused(concurrency: int) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        FolderOptions(concurrency)
