"""OpenVINO's CPU plugin, kept from breaking the signals of the process that it is loaded into.

Where the CPU has AMX, each `openvino.Core` gives the calling thread an alternate signal stack, frees it when it is
destroyed, and then puts back the one from before: also one that another Core has freed by then (seen with 2026.4).
The next signal that Python handles, a Ctrl-C, then ends the process with SIGSEGV. So the thread keeps the stack it had.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import openvino


class _SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """At the end, the thread's alternate signal stack is the one from before, or none."""
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


def compile_for_cpu(model: openvino.Model | Path, options: Mapping[str, object]) -> openvino.CompiledModel:
    """The model, or the one of a file, compiled for the CPU. options: properties of the CPU plugin."""
    with signal_stack_kept():
        return openvino.Core().compile_model(model, "CPU", dict(options))
