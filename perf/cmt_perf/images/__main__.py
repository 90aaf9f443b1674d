"""`make images`: builds the images that need no registry, tells what is in them, and holds them to their budgets."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cmt_perf.images.build import Image, build, layer_bytes, remove, run_in
from cmt_perf.images.dockerfile import Run

MB = 1_000_000
#: Budgets are a tenth above what was measured. That of `training` is with a PyTorch for CPUs; PyPI's brings CUDA along.
IMAGES = {
    image.name: image
    for image in (
        Image("cpu", "k8s/images/cpu.Dockerfile", 800 * MB, on_triton=True),
        Image("gpu", "k8s/images/gpu.Dockerfile", 520 * MB, on_triton=True, stage="serve"),
        Image("front-door", "k8s/images/front-door.Dockerfile", 460 * MB),
        Image("training", "k8s/training/Dockerfile", 2700 * MB),
    )
}
SBOM_TOOL = "cyclonedx-bom==7.*"
#: Lists the packages of the Python that runs it, and not those of the tool, which lie elsewhere.
SBOM = (
    "import runpy, sys; sys.path.append('/tmp/sbom'); "
    "sys.argv = ['cyclonedx-py', 'environment', '--output-reproducible', '--of', 'JSON', '/usr/bin/python3']; "
    "runpy.run_module('cyclonedx_py', run_name='__main__')"
)


@dataclass(frozen=True)
class Told:
    """base: the Dockerfile's; built_on: the layers here that stand in for it; packages: of Python."""

    image: str
    base: str
    built_on: tuple[str, ...]
    layer_bytes: int
    budget_bytes: int
    packages: int

    def __str__(self) -> str:
        size, budget = self.layer_bytes / MB, self.budget_bytes / MB
        return f"{self.image}: {size:,.0f} MB of {budget:,.0f}, {self.packages} packages"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(IMAGES), help=f"of {', '.join(IMAGES)}; all by default")
    parsed = parser.parse_args()
    found = []
    for name in parsed.names:
        found.append(told_of(IMAGES[name], build(IMAGES[name], parsed.out)))
        (parsed.out / f"{name}.json").write_text(json.dumps(asdict(found[-1]), indent=1) + "\n")
        print(found[-1])
    over = over_budget(found)
    if over:
        print(f"over its budget: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


def over_budget(found: Sequence[Told]) -> list[str]:
    """The images whose layer is larger than they may be."""
    return [told.image for told in found if told.layer_bytes > told.budget_bytes]


def told_of(image: Image, layers: list[Path]) -> Told:
    """What is in an image; its SBOM is written beside its layer."""
    sbom = sbom_of(layers)
    layers[0].with_suffix(".cdx.json").write_text(json.dumps(sbom, indent=1) + "\n")
    built_on = tuple(layer.name for layer in layers[1:])
    return Told(
        image.name, image.read().base, built_on, layer_bytes(layers[0]), image.budget_bytes, len(sbom["components"])
    )


def sbom_of(layers: list[Path]) -> dict[str, list[object]]:
    """A CycloneDX document of the Python packages, asked of the image's own Python."""
    scratch = layers[0].with_name(f"{layers[0].name}.scratch")
    tool = f"pip install --quiet --target /tmp/sbom '{SBOM_TOOL}' >/dev/null 2>&1 && python3 -c \"{SBOM}\" 2>/dev/null"
    try:
        told = run_in([scratch, *layers], Run(tool, {}, "/"))
    finally:
        remove(scratch)
    found: dict[str, list[object]] = json.loads(told)
    return found


if __name__ == "__main__":
    sys.exit(main())
