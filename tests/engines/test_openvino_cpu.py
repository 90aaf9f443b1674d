"""Signals are handled after OpenVINO was used, whatever it did to the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cmt_engine.openvino_cpu import _SignalStack, signal_stack_kept

COMPILES_TWICE_AND_GETS_A_SIGNAL = """
import signal, sys, threading
from pathlib import Path
from cmt_engine.engine import ENGINES

engine, path = ENGINES["openvino"], Path(sys.argv[1])
first, second = engine.open(path, "bf16", 1), engine.open(path, "bf16", 1)
del first, second  # in this order, which leaves the second with the first's freed stack
kept = [engine.open(path, "bf16", 1)]
thread = threading.Thread(target=kept.clear)  # and elsewhere than where it was made
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_after_engines_came_and_went(graphs: Mapping[str, Path]) -> None:
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        COMPILES_TWICE_AND_GETS_A_SIGNAL,
        str(graphs["encode_image"]),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


@pytest.mark.parametrize("failing", [False, True])
def test_the_stack_of_before_is_put_back(failing: bool) -> None:
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before, other, after = _SignalStack(), _SignalStack(), _SignalStack()
    memory = ctypes.create_string_buffer(1 << 16)
    sigaltstack(None, ctypes.byref(before))
    try:
        with signal_stack_kept():
            other.address, other.size = ctypes.addressof(memory), len(memory)
            assert sigaltstack(ctypes.byref(other), None) == 0
            if failing:
                raise OSError
    except OSError:
        assert failing
    sigaltstack(None, ctypes.byref(after))
    assert (after.address, after.flags, after.size) == (before.address, before.flags, before.size)
