"""A kubelet for the emulated Jobs whose pods are real: each in namespaces of its own, as its manifest says."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmt_rollout.kubernetes.rendered import quantity
from emulated_api.jobs import INDEX
from emulated_api.server import EmulatedApi
from pod_network import NetworkedPod, Node

Object = dict[str, Any]


@dataclass
class Running:
    pod: NetworkedPod
    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    reader: threading.Thread | None = None

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))


@dataclass
class NamespaceKubelet:
    """claims: folders of this machine, by the claim that a pod mounts; image: layers, as `pods.Sandbox` has them."""

    api: EmulatedApi
    node: Node
    folder: Path
    claims: Mapping[str, Path]
    image: Sequence[Path] = ()
    running: dict[str, Running] = field(default_factory=dict)

    def start(self, pod: Object) -> None:
        name, spec = pod["metadata"]["name"], pod["spec"]
        (container,) = spec["containers"]
        root = self.folder / name
        root.mkdir()
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        placed = NetworkedPod(
            root,
            {path: self._volume(root, volume) for path, volume in mounts.items() if path != "/dev/shm"},
            int(quantity(mounts["/dev/shm"]["emptyDir"]["sizeLimit"])),
            spec["securityContext"]["runAsUser"],
            image=self.image,
            node=self.node,
            name=spec["hostname"],
            service=spec["subdomain"],
        )
        process = placed.start({**container, "env": [self._variable(each, pod) for each in container["env"]]})
        running = self.running[name] = Running(placed, process)
        running.reader = threading.Thread(target=running.read)
        running.reader.start()

    def exit_code(self, name: str) -> int | None:
        running = self.running[name]
        code = running.process.poll()
        if code is None or running.reader is None:
            return code
        running.reader.join()
        return 128 + signal.SIGKILL if running.pod.killed else code

    def log(self, name: str) -> Iterable[tuple[float, str]]:
        return list(self.running[name].lines)

    def stop(self, name: str) -> None:
        running = self.running.get(name)
        if running is None:
            return
        if running.process.poll() is None:
            running.pod.kill()
        running.process.wait()
        if running.reader is not None:
            running.reader.join()

    def stop_all(self) -> None:
        for name in self.running:
            self.stop(name)

    def _volume(self, root: Path, volume: Object) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            return self.claims[claim["claimName"]]
        folder = root / volume["name"]
        folder.mkdir()
        folder.chmod(0o777)
        return folder

    def _variable(self, variable: Object, pod: Object) -> Object:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == f"metadata.annotations['{INDEX}']"
            return {"name": variable["name"], "value": pod["metadata"]["annotations"][INDEX]}
        if key := source.get("configMapKeyRef"):
            found = self.api.store.get(("configmaps", pod["metadata"]["namespace"], key["name"]))
            assert found is not None
            return {"name": variable["name"], "value": found["data"][key["key"]]}
        return variable
