"""The pool that prepares: in order, within its bytes, nothing that nobody waits for, each request on its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue

import numpy as np
import pytest

from cmt_pipeline.errors import InvalidInput, Overloaded
from cmt_pipeline.tensors import Array
from cmt_server.pool import Outcome, PreparePool

MOST_BYTES = 100
TIMEOUT_S = 30


class Held:
    """A preprocessor that waits until it is let go; `bad` is refused."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.prepared: list[bytes] = []

    def __call__(self, data: bytes) -> dict[str, Array]:
        assert self.go.wait(TIMEOUT_S)
        self.prepared.append(data)
        if data == b"bad":
            raise InvalidInput("text", "too_long", "got bad")
        ids = np.full(16, len(data), np.int64)
        return {"input_ids": ids, "attention_mask": np.ones(16, np.int64)}


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def pool(held: Held) -> Iterator[PreparePool]:
    pool = PreparePool({"text": held}, MOST_BYTES)
    yield pool
    held.go.set()
    pool.close()


def never() -> None:
    return None


def test_the_items_of_a_request_come_back_together(pool: PreparePool, held: Held) -> None:
    done: Queue[Outcome] = Queue()
    pool.prepare({"text": [b"a", b"bcd"]}, never, done.put)
    assert not pool.idle
    held.go.set()
    outcome = done.get(timeout=TIMEOUT_S)
    assert isinstance(outcome, dict)
    assert outcome["input_ids"][:, 0].tolist() == [1, 3]
    assert pool.idle


def test_a_bad_item_is_named_and_harms_nobody_else(pool: PreparePool, held: Held) -> None:
    bad: Queue[Outcome] = Queue()
    good: Queue[Outcome] = Queue()
    pool.prepare({"text": [b"a", b"bad"]}, never, bad.put)
    pool.prepare({"text": [b"a"]}, never, good.put)
    held.go.set()
    refused = bad.get(timeout=TIMEOUT_S)
    assert isinstance(refused, InvalidInput)
    assert (refused.code, refused.message) == ("too_long", "item 1 of 2: got bad")
    assert refused.__traceback__ is None
    assert isinstance(good.get(timeout=TIMEOUT_S), dict)


def test_no_more_is_held_than_agreed(pool: PreparePool, held: Held) -> None:
    done: Queue[Outcome] = Queue()
    huge = {"text": [b"a" * 5 * MOST_BYTES]}
    assert pool.room_for(huge) is None  # alone
    pool.prepare({"text": [b"a" * 60]}, never, done.put)
    assert pool.room_for({"text": [b"a" * 40]}) is None
    refused = pool.room_for({"text": [b"a" * 41]})
    assert refused is not None
    assert refused.code == "memory"
    assert "41 bytes beside 60" in refused.message
    held.go.set()
    done.get(timeout=TIMEOUT_S)
    assert pool.room_for(huge) is None


def test_what_nobody_waits_for_is_not_prepared(pool: PreparePool, held: Held) -> None:
    done: Queue[Outcome] = Queue()
    late = Overloaded("deadline", 0.0, "too late")
    held.go.set()
    pool.prepare({"text": [b"a", b"b"]}, lambda: late, done.put)
    assert done.get(timeout=TIMEOUT_S) is late
    assert not held.prepared
