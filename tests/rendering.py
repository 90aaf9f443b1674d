"""The manifests of k8s/, rendered by the real kubectl."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[1] / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")

#: What is tested: name -> the kustomizations and the components that are applied together.
RENDERED: dict[str, tuple[str, ...]] = {
    "cpu": ("overlays/cpu",),
    "gpu": ("overlays/gpu",),
    "gpu-mig": ("overlays/gpu-mig",),
    "dev": ("overlays/dev",),
    "gpu/engine-build": ("overlays/gpu/engine-build",),
    "gpu-mig/engine-build": ("overlays/gpu-mig/engine-build",),
    "training": ("training",),
    "gpu/training": ("overlays/gpu/training",),
    "cpu, front door": ("overlays/cpu", "components/front-door", "components/front-door/monitoring"),
    "cpu, HPA": ("overlays/cpu", "components/autoscaling-hpa", "components/monitoring", "components/gateway"),
    "gpu, KEDA": ("overlays/gpu", "components/autoscaling-keda", "components/monitoring", "components/gateway"),
}


def rendered_text(name: str) -> str:
    """YAML as `kubectl apply -k` would send it."""
    return _text_of(RENDERED[name])


@functools.cache
def _text_of(names: tuple[str, ...], more: str = "{}") -> str:
    """more: of the kustomization that puts them together, as JSON."""
    folders = [K8S / each for each in names]
    if len(folders) == 1 and more == "{}":
        return _kustomize(folders[0])
    with tempfile.TemporaryDirectory() as draft:
        relative = [os.path.relpath(each, Path(draft).resolve()) for each in folders]
        (Path(draft) / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "resources": relative[:1],
                    "components": relative[1:],
                    **json.loads(more),
                }
            )
        )
        return _kustomize(Path(draft))


def kustomized(*names: str, **more: Any) -> list[dict[str, Any]]:
    """A kustomization and components together, as somebody's own overlay would have them."""
    return list(yaml.safe_load_all(_text_of(names, json.dumps(more))))


def rendered(name: str) -> list[dict[str, Any]]:
    """Its objects, fresh ones each time."""
    return list(yaml.safe_load_all(rendered_text(name)))


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The object of this kind and name."""
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def _kustomize(folder: Path) -> str:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
