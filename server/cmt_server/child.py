"""tritonserver as a child process: its limits, its end, and what servers that were killed left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmt_pipeline.constants import PYTHON_STUB

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
GROUP_TIMEOUT_S = 5.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1

#: Seen on Triton 2.51: of a body that calls itself a form (curl's default) two copies lie on the stack of an HTTP
#: thread, and 16 bytes for each chunk of a chunked one; with the usual 8 MiB a body of 4 MB ends the server. A thread's
#: stack is address space alone until it is used. With this much the machine's memory ends before the stack does.
STACK_BYTES = 4 << 30
#: Linux refuses a thread a stack beyond the machine's memory.
STACK_SHARE = 4
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
NEVER_OVERCOMMIT = "2"


def stack_bytes() -> tuple[int, str]:
    """The stack limit that the child can have, and why it is less than a quarter of the memory or STACK_BYTES ("")."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = min(STACK_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // STACK_SHARE)
    if soft == resource.RLIM_INFINITY:
        soft = 8 << 20  # glibc gives threads as little then
    with contextlib.suppress(OSError):
        if OVERCOMMIT.read_text().strip() == NEVER_OVERCOMMIT:
            return soft, f"{OVERCOMMIT} is {NEVER_OVERCOMMIT}: every stack would count as used memory"
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return soft, "the address space is limited (ulimit -v)"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return hard, "the hard limit is lower (ulimit -Hs)"
    return max(wanted, soft), ""


def start_child(
    command: Sequence[str], environment: Mapping[str, str], log: int, stack: int
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, which ends with this one. environment: before that of this process.

    Raises OSError.
    """
    return subprocess.Popen(
        list(command),
        env={**environment, **{name: value for name, value in os.environ.items() if name not in environment}},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is ours to handle: drain first
        restore_signals=False,  # without a reader of its log it is to drain, not to die of SIGPIPE
        preexec_fn=lambda: _prepare(stack),
    )


def _prepare(stack: int) -> None:
    """In the child: SIGTERM when the process that started it dies, however it dies; the stack limit."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.getrlimit(resource.RLIMIT_STACK)[1]))


def end_group(group: int) -> None:
    """Ends what a server left of its process group: stubs whose server was killed."""
    deadline = time.monotonic() + GROUP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(POLL_S)


def remove_regions(prefix: str) -> None:
    """Removes a server's memory regions."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def clean_up_after_the_dead() -> None:
    """Ends stages' processes and removes memory regions of servers whose supervisor was killed, perhaps in mid-load."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            command, _, region = (process / "cmdline").read_text().split("\0")[:3]
            if Path(command).name == PYTHON_STUB and _is_dead(region):
                os.kill(int(process.name), signal.SIGKILL)
    for region_file in SHARED_MEMORY.glob("cmt-*-*-*"):
        if _is_dead(region_file.name):
            with contextlib.suppress(PermissionError):  # another user's
                region_file.unlink(missing_ok=True)


def _is_dead(region: str) -> bool:
    """Whether the supervisor that a memory region is named for has ended."""
    name, _, rest = region.partition("-")
    pid = rest.partition("-")[0]
    return name == "cmt" and pid.isdigit() and not Path("/proc", pid).exists()
