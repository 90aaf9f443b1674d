"""Fixtures that are dear, made once a session: releases of the mini and the tiny preset, and a real Triton."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from cmt_cli.export import trained_weights
from cmt_cli.state import State
from cmt_engine.engine import Precision
from cmt_export.checkpoint import Checkpoint, load_checkpoint
from cmt_export.export import PARITY_BATCHES, ExportOptions
from cmt_export.samples import Batch, batches
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import COMPILED_STAGES
from cmt_release.release import Release
from cmt_server.server import TritonServer
from exports import add_to, exported
from serving import server_on
from tiny_triton import TinyServer

ROOT = Path(__file__).parents[1]
REGIONS = Path("/dev/shm")

# A shared machine stalls now and then; what an example may take is bounded by the test's own time-out.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

#: Fixtures that a Triton is started for.
TRITON = {"server", "tiny", "traced"}
#: Fixtures that export a preset, which takes a minute of a core or more: of what needs a Triton, and of what doesn't.
EXPORTS = {"tiny"}, {"graph_folder", "release_of"}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """What needs a Triton runs beside at most one other that does, not beside what uses all cores. One file begins with
    the export that many need; these come last, so that nobody waits for it."""
    for item in items:
        if isinstance(item, pytest.Function) and TRITON & set(item.fixturenames):
            item.add_marker(pytest.mark.triton)
    yield
    for export in EXPORTS:
        found = [item.path for item in items if isinstance(item, pytest.Function) and export & set(item.fixturenames)]
        if found:
            first, needing = found[0], set(found)
            items.sort(key=lambda item: 0 if item.path == first else 1 + (item.path in needing))
            break


def pytest_configure(config: pytest.Config) -> None:
    """Libraries get one thread each, before they are loaded: small models gain nothing from a second one, and lose much
    when another process wants its core. Workers start no Triton.

    Ctrl-C interrupts, also where the tests were started in the background by a shell that has it ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["COLUMNS"] = "200"  # commands break no line within a path, which are long beneath a worker's folder
    if "not triton" in config.option.markexpr:
        TritonServer.start = _not_beside_others  # type: ignore[method-assign, assignment]
        TinyServer.__enter__ = _not_beside_others  # type: ignore[method-assign, assignment]


def _not_beside_others(*_: object) -> None:
    pytest.fail("this test starts a Triton: mark it `triton`")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A state folder of this run's own, which every server of the tests lives in."""
    return State(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def recipe() -> ExportOptions:
    """What the releases of the tests are exported with: the weights that come with the command, all else as it is."""
    return ExportOptions(checkpoint=trained_weights("mini", "meld"))


@pytest.fixture(scope="session")
def _in_use() -> Iterator[contextlib.ExitStack]:
    """What holds the shared exports that this session reads."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def release_of(state: State, recipe: ExportOptions, _in_use: contextlib.ExitStack) -> Callable[..., Release]:
    """The mini release of a precision and engine, of the weights that come with the command, in `state`."""

    @functools.cache
    def made(precision: Precision, engine: str = "openvino") -> Release:
        return add_to(state.releases, exported(replace(recipe, precision=precision, engine=engine), _in_use)[0])

    return made


@pytest.fixture(scope="session")
def tiny_state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A state folder with the releases of `tinies`."""
    return State(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_state: State, _in_use: contextlib.ExitStack) -> Release:
    """A release of the tiny preset: what a server is started on where no answer has to be right."""
    return add_to(tiny_state.releases, exported(ExportOptions(preset="tiny"), _in_use)[0])


@pytest.fixture(scope="session")
def tinies(tiny: Release, tiny_state: State, _in_use: contextlib.ExitStack) -> tuple[Release, Release]:
    """Two releases of the tiny preset, all of whose engines differ."""
    return tiny, add_to(tiny_state.releases, exported(ExportOptions(preset="tiny", seed=1), _in_use)[0])


@pytest.fixture(scope="session")
def checkpoint(recipe: ExportOptions) -> Checkpoint:
    """The model that the releases of the tests were exported from: the truth."""
    assert recipe.checkpoint is not None
    return load_checkpoint(recipe.checkpoint)


@pytest.fixture(scope="session")
def graph_folder(recipe: ExportOptions, _in_use: contextlib.ExitStack) -> Path:
    """The ONNX files of the mini model, a folder a stage, as an export keeps them."""
    return exported(recipe, _in_use)[1]


@pytest.fixture(scope="session")
def graphs(graph_folder: Path) -> Mapping[str, Path]:
    """The ONNX file of each compiled stage of the mini model, only to be read."""
    return {stage.name: graph_folder / stage.name / "model.onnx" for stage in COMPILED_STAGES}


@pytest.fixture(scope="session")
def compared(checkpoint: Checkpoint) -> Sequence[Batch]:
    """What an export compares engines by: batches of 1 to 3 items, one for each audio bucket."""
    return batches(make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer), PARITY_BATCHES)


@pytest.fixture(scope="session")
def server(
    release_of: Callable[[Precision], Release], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A real Triton that serves the fp32 release for the whole session."""
    with server_on(release_of("fp32"), tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test may leave a memory region behind."""
    before = set(os.listdir(REGIONS))
    yield
    new = {name for name in set(os.listdir(REGIONS)) - before if name.startswith("cmt-")}
    # Another run's servers may be at work beside this one.
    left = {name for name in new if _owner(name) == os.getpid() or not Path("/proc", str(_owner(name))).exists()}
    assert not left, f"left in {REGIONS}: {sorted(left)}"


def _owner(region: str) -> int:
    """The process whose server made a region; its name says so."""
    return int(region.split("-")[1])
