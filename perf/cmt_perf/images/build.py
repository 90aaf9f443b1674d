"""Builds an image's layer: its Dockerfile's instructions over a Debian that stands in for the base image.

    OUT/debian/          `debootstrap`'s, with Python and pip
    OUT/triton/          what the wheel nvidia-pytriton adds: stands in for the Triton image
    OUT/NAME/            what the instructions of the image added, and nothing else
    OUT/NAME.json        sizes and versions;   OUT/NAME.cdx.json   a CycloneDX SBOM of the Python packages

Layers are overlayfs's, so that their sizes are what a registry is sent, before compression. Needs root and Debian.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmt_perf.images.dockerfile import Copy, Run, Stage, read_dockerfile

ROOT = Path(__file__).parents[3]
DEBIAN_LAYER, TRITON_LAYER = "debian", "triton"
SUITE = "bookworm"  # its Python is 3.11, as the training image's
PACKAGES = "ca-certificates,python3,python3-pip"
#: As the Triton image has them: the server, and the library that its python backend is linked with.
TRITON = (
    "apt-get update -q && apt-get install -qy --no-install-recommends libpython3.11 && rm -rf /var/lib/apt/lists/* "
    "&& pip install --no-cache-dir --quiet 'nvidia-pytriton==0.7.*' 'numpy<2'"
)
#: Of this machine, seen while a command runs and part of no image, as are folders that PIP_ variables name.
NETWORK = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
UNPACKED = ("/proc", "/sys", "/dev", "/tmp", "/run")  # noqa: S108  # an image's folders


@dataclass(frozen=True)
class Image:
    """dockerfile: relative to the repository; stage: its last by default; on_triton: whose base is the Triton image;
    budget_bytes: that its layer may take; arguments: of the build."""

    name: str
    dockerfile: str
    budget_bytes: int
    on_triton: bool = False
    stage: str = ""
    arguments: Mapping[str, str] | None = None

    def read(self) -> Stage:
        stages = read_dockerfile(ROOT / self.dockerfile, self.arguments)
        return next((stage for stage in stages if stage.name == self.stage), stages[-1])


def build(image: Image, out: Path) -> list[Path]:
    """The image's layers, topmost first."""
    layers = [_debian(out)]
    if image.on_triton:
        layers.insert(0, _triton(out, layers))
    stage, layer = image.read(), out / image.name
    remove(layer)
    with_files = [layer, *layers]
    for step in stage.steps:
        if isinstance(step, Copy):
            _copy(step, layer)
        else:
            run_in(with_files, step)
    return with_files


def built(image: Image, out: Path) -> list[Path]:
    """The layers of an image that was built before, topmost first. FileNotFoundError where it wasn't."""
    layers = [out / image.name, *([out / TRITON_LAYER] if image.on_triton else []), out / DEBIAN_LAYER]
    if missing := [layer for layer in layers if not layer.is_dir()]:
        raise FileNotFoundError(f"{missing[0]} isn't built; run `make images`")
    return layers


def layer_bytes(layer: Path) -> int:
    """Bytes of its files, as `du` counts those that aren't sparse."""
    files = (Path(folder, name) for folder, _, names in os.walk(layer) for name in names)
    return sum(path.lstat().st_size for path in files)


def run_in(layers: Sequence[Path], step: Run) -> str:
    """A command in an image; what it writes stays in the topmost layer. Its output; RuntimeError where it fails."""
    top, *below = layers
    draft, root = top.with_name(f"{top.name}.work"), top.with_name(f"{top.name}.root")
    for folder in (top, draft, root):
        folder.mkdir(parents=True, exist_ok=True)
    lines = ["set -e", "mount --make-rprivate /"]
    lines += [
        f"mount -t overlay -o lowerdir={':'.join(map(str, below))},upperdir={top},workdir={draft} image {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs tmp {root}/tmp",  # noqa: S108  # the image's
    ]
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    binds = [
        *NETWORK,
        *(path for path in " ".join(pip.values()).split() if path.startswith("/") and os.path.isdir(path)),
    ]
    for path in binds:
        there = f"{root}{os.path.realpath(path)}"
        made = f"mkdir -p {there}" if os.path.isdir(path) else f"mkdir -p {os.path.dirname(there)}; touch {there}"
        lines += [f"{{ {made}; }}", f"mount --bind {path} {there}"]
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", **pip, **step.variables}
    variables |= {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore"}  # Debian's Python, as Ubuntu's
    settings = shlex.join(f"{name}={value}" for name, value in variables.items())
    words = shlex.join(["sh", "-euc", f"cd {step.folder}; {step.command}"])
    lines.append(f"exec chroot {root} env -i {settings} {words}")
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", "\n".join(lines)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    finally:
        remove(draft)
        remove(root)
        _forget_binds(top, binds)
    if done.returncode:
        raise RuntimeError(f"{step.command}: exit status {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _debian(out: Path) -> Path:
    layer, draft = out / DEBIAN_LAYER, out / f"{DEBIAN_LAYER}.draft"
    if not layer.is_dir():
        remove(draft)
        out.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(draft)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for folder in UNPACKED:
            (draft / folder[1:]).mkdir(exist_ok=True)
        draft.rename(layer)
    return layer


def _triton(out: Path, below: Sequence[Path]) -> Path:
    layer, draft = out / TRITON_LAYER, out / f"{TRITON_LAYER}.draft"
    if not layer.is_dir():
        remove(draft)
        run_in([draft, *below], Run(TRITON, {}, "/"))
        draft.rename(layer)
    return layer


def _copy(step: Copy, layer: Path) -> None:
    """What git knows of the sources: a build context without the leavings of this folder."""
    for source in step.sources:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", source]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            inside = os.path.relpath(name, source) if (ROOT / source).is_dir() else os.path.basename(name)
            target = layer / step.target.lstrip("/") / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def _forget_binds(layer: Path, binds: Sequence[str]) -> None:
    """Takes away the empty places where this machine's files were mounted."""
    for path in binds:
        place = layer / os.path.realpath(path).lstrip("/")
        if place.is_file() and not place.stat().st_size:
            place.unlink()
        while place != layer and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
            place = place.parent
