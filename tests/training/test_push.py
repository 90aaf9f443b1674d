"""`cmt train --push`: a checkpoint goes to a store, once, and a training that is asked for again is done already."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cmt_cli.train
from cmt_cli.main import app
from cmt_export.sources import WEIGHTS_FILE
from cmt_release.checkpoints import pull_checkpoint, stored_checkpoints
from cmt_release.objects import open_objects
from small_corpus import small_corpus, table_of
from tiny_model import TINY


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return table_of(small_corpus(folder, (12, 3, 3)), folder / "table.csv")


def cmt_train(table: Path, folder: Path, *more: str) -> Result:
    fixed = ["--preset", TINY.name, "--model", "text", "--out", str(folder / "words"), "--state", str(folder / "state")]
    return CliRunner().invoke(app, ["train", str(table), *fixed, "--epochs", "1", "--resume", *more])


def test_a_checkpoint_is_sent_and_a_training_that_is_done_isnt_done_again(table: Path, tmp_path: Path) -> None:
    store = ("--push", "--store", str(tmp_path / "store"))
    assert cmt_train(table, tmp_path).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cmt_cli.train, "prepared_data", lambda *_: pytest.fail("it trains again"))
        sent, again = (cmt_train(table, tmp_path, *store) for _ in range(2))
        other = cmt_train(table, tmp_path, *store, "--seed", "3")
    for done in (sent, again):
        assert done.exit_code == 0, done.exception
        assert "is there already, of these options" in done.stdout
    assert "already" in again.stdout.splitlines()[-1]
    assert "holds a checkpoint of other seed: got {'seed': 0}, expected {'seed': 3}" in str(other.exception)
    pull_checkpoint(open_objects(str(tmp_path / "store")), "words", tmp_path / "back", lambda *_: None)
    assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == (tmp_path / "words" / WEIGHTS_FILE).read_bytes()


def test_a_store_that_is_not_named_or_has_the_name_is_told_of_before_anything_is_trained(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMT_STORE", raising=False)
    monkeypatch.setattr(cmt_cli.train, "prepared_data", lambda *_: pytest.fail("it trains"))
    assert "got --push and no store" in str(cmt_train(table, tmp_path, "--push").exception)
    store = tmp_path / "store"
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "config.json").write_text("{}")
    pushed = CliRunner().invoke(app, ["checkpoint", "push", str(tmp_path / "words"), "--store", str(store)])
    assert pushed.exit_code == 0, pushed.exception
    assert stored_checkpoints(open_objects(str(store))) == ["words"]
    (tmp_path / "words").rename(tmp_path / "elsewhere")
    refused = cmt_train(table, tmp_path, "--push", "--store", str(store))
    assert "has a checkpoint words already, and a name is given once" in str(refused.exception)


def test_checkpoints_are_listed_sent_and_fetched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")

    def cmt(*words: str) -> Result:
        return CliRunner().invoke(app, ["checkpoint", *words, "--store", str(tmp_path / "store")])

    assert "is no checkpoint" in str(cmt("push", str(tmp_path)).exception)
    assert cmt("push", str(tmp_path / "mine")).exit_code == 0
    assert cmt("list").stdout == "mine\n"
    assert cmt("pull", "mine", "--out", str(tmp_path / "back")).exit_code == 0
    assert (tmp_path / "back" / "config.json").read_text() == "{}"
