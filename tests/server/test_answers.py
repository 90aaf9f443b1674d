"""Answers say who made them: any mix of releases behind any balancer is read right, and upgrades change no version."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from cmt_client import (
    AsyncEmotionClient,
    AsyncTransport,
    Emotion,
    EmotionClient,
    Item,
    Transport,
    connect,
    connect_async,
)
from cmt_client.operations import Operation
from cmt_export.export import ExportOptions
from cmt_pipeline.modality import SUBSETS
from cmt_release.locks import draft_folder
from cmt_release.release import Release, release_from_engines
from cmt_rollout.server_target import ServerTarget
from cmt_server.repository import Repository
from cmt_server.server import TritonServer
from exports import add_to, exported
from items import as_request, random_items
from serving import server_on

pytestmark = [pytest.mark.triton, pytest.mark.long]
T = TypeVar("T")

ITEMS: list[Item] = [as_request(item) for item in random_items(len(SUBSETS), seed=5)]
TOLERANCE = 1e-5


class RoundRobin:
    """A balancer: each call goes to the next server."""

    def __init__(self, transports: list[Transport]) -> None:
        self._all = transports
        self._turns = itertools.cycle(transports)
        self._lock = threading.Lock()

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        with self._lock:
            transport = next(self._turns)
        return transport.call(operation, timeout_s)

    def close(self) -> None:
        for transport in self._all:
            transport.close()


class AsyncRoundRobin:
    """The same for asyncio."""

    def __init__(self, transports: list[AsyncTransport]) -> None:
        self._all = transports
        self._turns = itertools.cycle(transports)

    async def call(self, operation: Operation[T], timeout_s: float) -> T:
        return await next(self._turns).call(operation, timeout_s)

    async def close(self) -> None:
        for transport in self._all:
            await transport.close()


@dataclass(frozen=True)
class Served:
    """A server of one release, and what it alone answers."""

    server: TritonServer
    release: Release
    alone: list[Emotion]

    def url(self, protocol: str) -> str:
        return self.server.grpc_url if protocol == "grpc" else self.server.http_url


@pytest.fixture(scope="module")
def both(tiny: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """Two servers whose releases have other numbers, label sets and label counts."""
    folder = tmp_path_factory.mktemp("answers")
    with contextlib.ExitStack() as stack:
        other = exported(ExportOptions(preset="tiny", label_set="iemocap4"), stack)[0]
        second = relabelled(folder / "releases", add_to(folder / "releases", other), other.manifest.info.labels[::-1])
        served = []
        for name, release in (("one", tiny), ("two", second)):
            server = stack.enter_context(server_on(release, folder / name))
            with EmotionClient(server.grpc_url) as client:
                served.append(Served(server, release, [client.predict(**item) for item in ITEMS]))
        one, two = served
        yield one, two


def relabelled(store: Path, base: Release, labels: tuple[str, ...]) -> Release:
    """A release whose stages are all the other one's, but whose labels have another order."""
    manifest = base.manifest
    with draft_folder(store) as draft:
        shutil.copytree(base.folder, draft, dirs_exist_ok=True)
        (draft / "manifest.json").unlink()
        return release_from_engines(
            store,
            draft,
            replace(manifest.info, labels=labels),
            features=manifest.features,
            published=manifest.published,
            parity=manifest.parity,
            golden=(),
            golden_tolerance=manifest.golden_tolerance,
            preprocess=manifest.preprocess,
            versions=manifest.versions,
            recipe="relabelled",
        )


def assert_read_right(answers: list[Emotion], both: tuple[Served, Served]) -> None:
    """Each item's answer is just what the server that made it says alone; both servers made some."""
    by_digest = {served.release.digest: served for served in both}
    assert {answer.digest for answer in answers} == by_digest.keys()
    for index, answer in enumerate(answers):
        maker = by_digest[answer.digest]
        alone, info = maker.alone[index % len(ITEMS)], maker.release.manifest.info
        assert (answer.release, answer.label_set) == (info.release, info.label_set)
        assert tuple(answer.probabilities) == info.labels
        assert answer.label == alone.label
        assert max(abs(p - alone.probabilities[name]) for name, p in answer.probabilities.items()) < TOLERANCE


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_answer_of_a_round_robin_is_read_right(both: tuple[Served, Served], protocol: str) -> None:
    transport = RoundRobin([connect(served.url(protocol)) for served in both])
    with EmotionClient("round robin", transport=transport) as client:
        assert_read_right([client.predict(**item) for item in ITEMS], both)
        assert_read_right(client.predict_many(ITEMS * 3, concurrency=6, errors="raise"), both)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_so_it_is_with_asyncio(both: tuple[Served, Served], protocol: str) -> None:
    async def ask() -> list[Emotion]:
        transport = AsyncRoundRobin([connect_async(served.url(protocol)) for served in both])
        async with AsyncEmotionClient("round robin", transport=transport) as client:
            return await client.predict_many(ITEMS * 3, concurrency=6, errors="raise")

    assert_read_right(asyncio.run(ask()), both)


def test_labels_are_those_of_the_release_though_two_share_every_engine(tiny: Release, tmp_path: Path) -> None:
    """Live and on trial at once: only the stages that say so know whose answer it is."""
    store = tmp_path / "releases"
    live = add_to(store, tiny)
    trial = relabelled(store, live, live.manifest.info.labels[::-1])
    assert trial.manifest.stages["fuse"] == live.manifest.stages["fuse"]
    with server_on(live, tmp_path / "served") as server:
        target = ServerTarget(server.grpc_url, Repository(server.options.repository), server.options.control_token)
        target.load(trial)
        with (
            EmotionClient(server.grpc_url) as client,
            EmotionClient(server.http_url, canary="only") as on_trial,
            pinned(server) as answers,
        ):
            for item in ITEMS:
                one, two = client.predict(**item), on_trial.predict(**item)
                assert (one.digest, two.digest) == (live.digest, trial.digest)
                assert tuple(one.probabilities) == tuple(two.probabilities)[::-1] == live.manifest.info.labels
                assert list(one.probabilities.values()) == pytest.approx([*two.probabilities.values()], abs=TOLERANCE)
            target.flip(trial.number, live.number)
            assert client.predict(**ITEMS[0]).digest == trial.digest
            answers(20)
        target.close()


def test_another_version_than_1_never_was_there(both: tuple[Served, Served]) -> None:
    """So that no upgrade takes away what a client could pin."""
    for module, url, status in (
        (tritonclient.grpc, both[1].server.grpc_url, "StatusCode.NOT_FOUND"),
        (tritonclient.http, both[1].server.http_url, "404"),
    ):
        text = module.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"Hello?"]], object))
        client = module.InferenceServerClient(url.partition("://")[2])
        with pytest.raises(InferenceServerException, match="version 2 is not found") as refused:
            client.infer("emotion_text", [text], model_version="2")
        assert refused.value.status() == status
        client.close()


@contextlib.contextmanager
def pinned(server: TritonServer) -> Iterator[Callable[[int], None]]:
    """Plain clients that pin model_version 1 and ask all the while; `answers(n)` waits for n more of each, no error."""
    over, made = threading.Event(), [0, 0]
    errors: list[Exception] = []
    more = threading.Condition()

    def ask(which: int) -> None:
        module = (tritonclient.grpc, tritonclient.http)[which]
        url = (server.grpc_url, server.http_url)[which].partition("://")[2]
        text = module.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"Hello?"]], object))
        client = module.InferenceServerClient(url)
        while not over.is_set():
            try:
                client.infer("emotion_text", [text], model_version="1")
            except Exception as error:
                errors.append(error)
            with more:
                made[which] += 1
                more.notify_all()
        client.close()

    def answers(count: int) -> None:
        with more:
            wanted = [n + count for n in made]
            assert more.wait_for(lambda: all(n >= w for n, w in zip(made, wanted, strict=True)), 60)

    threads = [threading.Thread(target=ask, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        answers(2)
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not errors
