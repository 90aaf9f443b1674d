"""A target that has every fault there is, for the fuzzer to notice."""

from __future__ import annotations

from typing import NoReturn

import failing_decoders
from cmt_pipeline.errors import InvalidInput
from fuzz.targets import Target

FAULTS = {
    b"crash": failing_decoders.crashes,
    b"hang": failing_decoders.hangs,
    b"memory": failing_decoders.takes_all_memory,
}


def run(data: bytes) -> str:
    if data in FAULTS:
        FAULTS[data]()
    if data == b"untyped":
        raise KeyError(data)
    if data == b"refused":
        _refuse()
    assert data != b"contract"
    return "answered"


def _refuse() -> NoReturn:
    raise InvalidInput("image", "empty", "got nothing")


TARGET = Target("faulty", run, (InvalidInput,), lambda _: [])
