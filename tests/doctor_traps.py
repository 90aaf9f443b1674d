"""What walks into the traps that the doctor knows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cmt_server.doctor.diagnosis import Diagnosis
from tiny_triton import TinyServer

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
X, Y = {"x": "x"}, {"y": "y"}
BATCH = "max_batch_size: 8 dynamic_batching { }"


def queue(policy: str) -> str:
    return f"max_batch_size: 1 dynamic_batching {{ default_queue_policy {{ {policy} }} }}"


def in_a_batch(number: float = 1.0, length: int = 1) -> tuple[list[int], list[float]]:
    return [1, length], [number] * length


def at_once(server: TinyServer, model: str, inputs: Sequence[Any], **more: Any) -> list[tuple[int, Any]]:
    """Answers to requests that are sent together; status 0 where the connection broke or nothing came."""

    def ask(value: Any) -> tuple[int, Any]:
        try:
            return server.infer(model, x=value, **more)
        except OSError as error:
            return 0, repr(error)

    with ThreadPoolExecutor(len(inputs)) as senders:
        return list(senders.map(ask, inputs))


def named(diagnosis: Diagnosis) -> set[tuple[str, str]]:
    return {(one.rule.id, one.model) for one in diagnosis.findings}
