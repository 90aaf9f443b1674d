"""Runs the containers of a rendered pod on this machine: as they are, in namespaces of their own, or on loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rendering import K8S, one

ROOT = K8S.parent
BINARIES = Path(sys.executable).parent
Container = dict[str, Any]

#: What a container's image would hold: the system, this Python, its packages, our sources.
HERE = [Path(path) for path in ("/usr", "/etc", "/bin", "/lib", "/lib64", "/proc", "/sys")]
HERE += [Path(sys.base_prefix), Path(sys.prefix), ROOT]


def command_of(container: Container) -> list[str]:
    """Its command line, with variables put in as the kubelet does."""
    values = environment_of(container)
    words = [*container["command"], *container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word) for word in words]


def environment_of(container: Container) -> dict[str, str]:
    """Its variables; those of ConfigMaps are `value` by now, see `resolved`."""
    return {variable["name"]: variable["value"] for variable in container["env"]}


def skip_where_covered(container: Container) -> None:
    """Skips a test whose container mounts a volume over the command that is installed here."""
    for mount in container["volumeMounts"]:
        if Path(mount["mountPath"]) in BINARIES.parents:
            pytest.skip(f"the pod mounts {mount['mountPath']} over {BINARIES}, where its command lies")


def resolved(objects: list[dict[str, Any]], deployment: str, release: int) -> dict[str, Any]:
    """The pod of a Deployment with its ConfigMaps put in, and the release chosen as an upgrade does."""
    pod: dict[str, Any] = one(objects, "Deployment", deployment)["spec"]["template"]["spec"]
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        for source in container.pop("envFrom", ()):
            if "configMapRef" in source:  # a store's secrets are a deployment's own
                values = one(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
                container["env"] += [{"name": name, "value": value} for name, value in values.items()]
        for variable in container["env"]:
            if source := variable.pop("valueFrom", None):
                key = source["configMapKeyRef"]
                variable["value"] = one(objects, "ConfigMap", key["name"])["data"][key["key"]]
            if variable["name"] == "CMT_RELEASE":
                variable["value"] = str(release)
    return pod


@dataclass
class Loopback:
    """Containers as processes of ours: folders under `root`, free ports, 127.0.0.1."""

    root: Path
    folders: Mapping[str, Path]
    ports: dict[int, int] = field(default_factory=dict)

    def start(self, container: Container) -> subprocess.Popen[str]:
        for port in container.get("ports", ()):
            self.ports[port["containerPort"]] = 0
        with ExitStack() as stack:
            for port in self.ports:
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                self.ports[port] = listener.getsockname()[1]
        environment = {**os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}"}
        environment |= {name: self._here(value) for name, value in environment_of(container).items()}
        command = [self._here(word) for word in command_of(container)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def status(self, port: int, path: str) -> int:
        return http_status(self.ports[port], path)

    def signal(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)

    def _here(self, word: str) -> str:
        for there, here in self.folders.items():
            word = re.sub(rf"(^|=){there}$", rf"\g<1>{here}", word)
        for there, port in self.ports.items():
            word = re.sub(rf"-port={there}$", f"-port={port}", word)
        return word.replace("0.0.0.0", "127.0.0.1")


@dataclass
class Sandbox:
    """Containers in mount, process and network namespaces: their own paths, ports and user, a read-only root.

    Process 1 reaps, as that of a pod with shareProcessNamespace. No seccomp and no cgroups: not a container runtime.
    image: layers of a system of its own, topmost first; without them, what is installed here.
    """

    root: Path
    folders: Mapping[str, Path]
    shm_bytes: int
    user: int
    process: int = 0
    image: Sequence[Path] = ()

    @staticmethod
    def unavailable() -> str:
        """Why there can be none here; empty if there can."""
        if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "ip"))):
            return "namespaces need root, util-linux and iproute2"
        tried = subprocess.run(
            ["unshare", "-m", "-n", "-p", "-f", "mount", "--make-rprivate", "/"], capture_output=True
        )
        return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode()}"

    def start(self, container: Container) -> subprocess.Popen[str]:
        script = self.root / f"{container['name']}.sh"
        script.write_text(self._script(container))
        # --kill-child: nothing of it outlives this process
        command = ["unshare", "-m", "-n", "-u", "-p", "-f", "--kill-child", "bash", script]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 10
        while not (found := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.process = int(found[0])
        return process

    def status(self, port: int, path: str) -> int:
        """Asked from within the pod's network."""
        asked = self.inside([sys.executable, "-c", f"from pods import *; print(http_status({port}, {path!r}))"])
        return int(asked.stdout or 0)

    def inside(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        enter = ["nsenter", "--target", str(self.process), "--net"]
        return subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, timeout=60)

    def signal(self, process: subprocess.Popen[str]) -> None:
        os.kill(self.process, signal.SIGTERM)  # process 1 hands it on

    def _script(self, container: Container) -> str:
        """Lays out a root of its own, then runs the container's command in it."""
        root = self.root / "rootfs"
        root.mkdir(exist_ok=True)
        lines = ["set -e", *self._network(), "mount --make-rprivate /", *self._image(root)]
        lines += [f"mkdir -p {root}/dev", f"mount --rbind /dev {root}/dev"]
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
        for path, read_only in mounts.items():
            if path == "/dev/shm":
                lines += [f"mount -t tmpfs -o mode=1777,size={self.shm_bytes} shm {root}{path}"]
            else:
                here = self.folders[path]
                lines += [f"mkdir -p {root}{path}", f"mount --bind {'-o ro' if read_only else ''} {here} {root}{path}"]
        lines += [f"mount -o remount,ro {root}"]
        user = f"setpriv --reuid {self.user} --regid {self.user} --clear-groups --no-new-privs --bounding-set=-all"
        variables = {**self._variables(), **environment_of(container)}
        named = shlex.join(f"{name}={value}" for name, value in variables.items())
        words = shlex.join(command_of(container))
        lines += [f"cd {root}", f"chroot . {user} env -i {named} {words} &", "child=$!"]
        lines += ["trap 'kill -TERM $child' TERM", "set +e", "wait $child", "code=$?"]
        lines += ["while kill -0 $child 2>/dev/null; do wait $child; code=$?; done", "exit $code"]
        return "\n".join(lines) + "\n"

    def _network(self) -> list[str]:
        """How a pod comes to its name and network: here, to loopback alone."""
        return ["ip link set lo up"]

    def _image(self, root: Path) -> list[str]:
        """Puts the image's files at a root that nothing but volumes will be written to."""
        if self.image:
            layers, upper = ":".join(map(str, self.image)), self.root / "upper"
            return [  # volumes' places are made as a container runtime does
                f"mkdir -p {upper}; mount -t tmpfs upper {upper}; mkdir {upper}/files {upper}/work",
                f"mount -t overlay -o lowerdir={layers},upperdir={upper}/files,workdir={upper}/work image {root}",
                f"mount -t proc proc {root}/proc",
            ]
        lines = [f"mount -t tmpfs -o mode=755 root {root}"]
        for path in HERE:
            if path.is_symlink() and path.parent == Path("/"):
                lines += [f"cp -d {path} {root}{path}"]
            elif path.exists() and not any(parent in HERE for parent in path.parents):
                bind = "-t proc proc" if path == Path("/proc") else f"--bind -o ro {path}"
                lines += [f"mkdir -p {root}{path}", f"mount {bind} {root}{path}"]
        return lines

    def _variables(self) -> dict[str, str]:
        """The image's own. Sources that this process was told to take are the image's here."""
        if self.image:
            return {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        ours = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {"PATH": f"{BINARIES}:/usr/bin:/bin", **ours}


def http_status(port: int, path: str) -> int:
    """What a probe would see; 0 where nobody answers."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
