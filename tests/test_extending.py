"""What docs/extending.md adds, laid out as an installed package would be, and used from one end to the other."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmt_cli.evaluate import evaluation_table
from cmt_cli.export import golden_sample, sample
from cmt_client import EmotionClient
from cmt_engine.engine import ENGINES, EngineSidecar
from cmt_export import export as exporting
from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.export import ExportOptions, export, recipe_of
from cmt_export.family import FAMILIES
from cmt_pipeline.labels import LABEL_SETS
from cmt_pipeline.progress import no_progress
from cmt_release.release import Release
from cmt_training.evaluate import evaluate
from cmt_training.metrics import METRICS
from cmt_training.prepare import prepare
from cmt_training.report import write_evaluation
from serving import server_on
from small_corpus import small_corpus
from tiny_model import TINY

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE)
TESTS = sorted(name.removesuffix(".py") for name, _ in FILES if name.startswith("test_"))


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files as pip would lay them, in an environment of their own that sees this one's packages.

    Triton's stub looks into the environment of the Python that starts it, whatever PYTHONPATH says.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    (folder,) = environment.glob("lib/python*/site-packages")
    (folder / "ours.pth").write_text("\n".join(path for path in sys.path if path))
    for name, text in FILES:
        if name.endswith(".py"):
            (folder / name).write_text(text)
    install(folder, "".join(text for name, text in FILES if name == "pyproject.toml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "executable", str(environment / "bin" / "python"))
        yield folder
    for name in [Path(name).stem for name, _ in FILES]:
        sys.modules.pop(name, None)


def install(folder: Path, tables: str, distribution: str = "mine") -> None:
    """Metadata of a distribution with the entry points of pyproject.toml's tables."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    points = re.sub(r'\[project\.entry-points\."([^"]+)"\]', r"[\1]", tables).replace('"', "")
    (info / "entry_points.txt").write_text(points)


@pytest.mark.long
@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_the_page_pass(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    tests = [function for key, function in vars(module).items() if key.startswith("test_")]
    assert tests
    for test in tests:
        test(*[tmp_path] * len(inspect.signature(test).parameters))


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Exported with the page's engine, preset, encoder family and label set; one short item is compared alone."""
    options = ExportOptions(preset="pocket", label_set="moods", engine="optimised")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "PARITY_BATCHES", (1,))
        release, _ = export(options, tmp_path_factory.mktemp("releases"), golden_sample(), no_progress)
    return release


@pytest.mark.long
@pytest.mark.triton
def test_a_release_of_foreign_parts_is_held_against_pytorch_and_serves(moody: Release, tmp_path: Path) -> None:
    info = moody.manifest.info
    assert (info.engine, info.preset, info.label_set) == ("optimised", "pocket", "moods")
    optimised = [row for row in moody.manifest.parity if row["engine"] == "optimised"]
    assert len(optimised) == 4 + 7  # stages, pipelines
    assert all(row["error"] <= row["tolerance"] == 1e-4 for row in optimised)
    assert EngineSidecar.read(moody.stage_folder("fuse")).engine == "optimised"
    golden = next(answer for answer in moody.manifest.golden if len(answer.modalities) == 3)
    with server_on(moody, tmp_path) as server, EmotionClient(server.grpc_url) as client:
        emotion = client.predict(image=sample("image"), audio=sample("audio"), text=sample("text").read_text().strip())
    assert emotion.probabilities == pytest.approx(golden.probabilities, abs=1e-3)
    assert tuple(emotion.probabilities) == ("calm", "tense", "cheerful")
    assert (emotion.engine, emotion.label_set) == ("optimised", "moods")


@pytest.mark.long
def test_labels_without_any_set_reach_the_release(moody: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    store = moody.folder.parent
    (graphs,) = (store / ".onnx").iterdir()  # of as many labels, and so the same
    monkeypatch.setattr(exporting, "PARITY_BATCHES", (1,))
    monkeypatch.setattr(exporting, "_fresh_cache", lambda root, key: contextlib.nullcontext(graphs))
    options = ExportOptions(preset="pocket", label_set="calm,very sad,enraptured", engine="onnxruntime")
    release, _ = export(options, store, golden_sample(), no_progress)
    assert release.manifest.info.labels == ("calm", "very sad", "enraptured")
    assert (release.stage_folder("fuse") / "labels.txt").read_text() == "calm\nvery sad\nenraptured\n"
    assert all(answer.probabilities.keys() == set(release.manifest.info.labels) for answer in release.manifest.golden)


def test_a_changed_file_of_a_package_makes_another_release(package: Path) -> None:
    """Its version may be the same, as while it is being written."""
    for name in ("my_engine.py", "my_family.py"):
        options, path = ExportOptions(preset="pocket", engine="optimised"), package / name
        before, text = recipe_of(options, golden_sample()), path.read_text()
        path.write_text(f"{text}\n# changed\n")
        assert recipe_of(options, golden_sample()) != before
        path.write_text(text)
        assert recipe_of(options, golden_sample()) == before


@pytest.mark.long
def test_an_evaluation_has_the_metric(tmp_path: Path) -> None:
    checkpoint = checkpoint_from_preset(TINY.name, "meld")
    corpus = small_corpus(tmp_path / "corpus", counts=(1, 1, 4))
    data = prepare(corpus, checkpoint.config.preprocess, checkpoint.tokenizer, tmp_path / "cache", no_progress)
    evaluation = evaluate(checkpoint, data, no_progress)
    assert 0 < evaluation.calibrated["brier"] < 2
    assert "Brier score" in [column.header for column in evaluation_table(evaluation).columns]
    write_evaluation(evaluation, tmp_path / "report")
    for file in ("report.html", "MODEL_CARD.md"):
        assert "Brier score" in (tmp_path / "report" / file).read_text()


def test_what_is_known_is_listed_own_names_first() -> None:
    first, *_, last = ENGINES
    assert (first, last) == ("openvino", "optimised")
    assert tuple(FAMILIES)[-1] == "megatron-bert"
    assert tuple(METRICS)[-1] == "brier"
    with pytest.raises(ValueError, match=r"label set: got 'melt'; expected one of meld, .*, moods"):
        LABEL_SETS["melt"]


def test_what_a_package_does_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.py").write_text("TEXT = 'calm'\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('no licence')\n")
    table = '[project.entry-points."cmt_triton.label_sets"]\n'
    install(tmp_path, f"{table}text = wrong:TEXT\ntwice = wrong:TEXT\nbroken = broken:X\nmeld = wrong:TEXT\n", "wrong")
    install(tmp_path, f"{table}twice = wrong:OTHER\n", "other")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, message in (
        ("twice", "label set 'twice' is offered as wrong:[A-Z]+ and as wrong:[A-Z]+; uninstall one of them"),
        ("broken", "label set 'broken', the entry point broken:X .* can't be imported: RuntimeError: no licence"),
        ("text", "label set 'text', the entry point wrong:TEXT .* is str; expected an object of tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            LABEL_SETS[name]
    assert LABEL_SETS["meld"][0] == "neutral"  # no package takes a name of ours
