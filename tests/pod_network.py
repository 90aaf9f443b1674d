"""A node of pods that reach each other by name: each in namespaces of its own, on one bridge.

A pod that is made again has another address, as on a cluster. Names are those that a headless Service and an Indexed
Job give, in the pods' /etc/hosts instead of a DNS. Everything goes when the node's process ends.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pods import Container, Sandbox

SUBNET = "10.77.0"
BRIDGE = f"""
ip link add pods type bridge && ip address add {SUBNET}.1/24 dev pods && ip link set pods up && ip link set lo up
echo ready; exec sleep infinity
"""


@dataclass
class Node:
    """process: in the network namespace where the pods' bridge is; hosts: what stands in for a DNS."""

    process: int
    hosts: Path
    _addresses: Iterator[int] = field(default_factory=lambda: iter(range(2, 255)))
    _known: dict[str, str] = field(default_factory=dict)

    def address(self, name: str, service: str) -> str:
        """A new one for a pod of this name, which the others find it by from now on."""
        address = f"{SUBNET}.{next(self._addresses)}"
        self._known[name] = f"{address} {name}.{service} {name}"
        self.hosts.write_text("\n".join(["127.0.0.1 localhost", *self._known.values(), ""]))
        return address

    def connect(self, pod: int, address: str) -> None:
        """Gives a process's network namespace an eth0 on the bridge."""
        near = f"pod{address.rpartition('.')[2]}"
        inside, outside = (["nsenter", "--target", str(each), "--net"] for each in (pod, self.process))
        for command in (
            [*outside, *f"ip link add {near} type veth peer name eth0 netns {pod}".split()],
            [*outside, *f"ip link set {near} master pods up".split()],
            [*inside, *f"ip address add {address}/24 dev eth0".split()],
            [*inside, *["ip", "link", "set", "eth0", "up"]],
        ):
            subprocess.run(command, check=True, timeout=30)


@contextmanager
def node(folder: Path) -> Iterator[Node]:
    command = ["unshare", "--net", "--fork", "--kill-child", "sh", "-c", BRIDGE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield Node(_child_of(holder.pid), folder / "hosts")
        finally:
            holder.kill()


@dataclass
class NetworkedPod(Sandbox):
    """A pod of a Service, with its own name and address."""

    node: Node | None = None
    name: str = ""
    service: str = ""
    killed: bool = False

    def start(self, container: Container) -> subprocess.Popen[str]:
        assert self.node is not None
        address = self.node.address(self.name, self.service)
        process = super().start(container)
        self.node.connect(self.process, address)
        return process

    def kill(self) -> None:
        """All of it at once, as a node's kernel does that ran out of memory."""
        self.killed = True
        os.kill(self.process, signal.SIGKILL)

    def _network(self) -> list[str]:
        return [
            f"hostname {self.name}",
            "ip link set lo up",
            "until ip -4 address show up dev eth0 2>/dev/null | grep -q inet; do sleep 0.02; done",
        ]

    def _image(self, root: Path) -> list[str]:
        assert self.node is not None
        place = root / "etc" / "hosts"
        made = [f"[ -e {place} ] || touch {place}", f"mount --bind {self.node.hosts} {place}"]
        return [*super()._image(root), *made]


def _child_of(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children")
    for _ in itertools.repeat(None, 500):
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError(f"process {process} has no child")
