"""The manifests of `k8s/training`, rendered by the real kubectl."""

from __future__ import annotations

import subprocess
from typing import Any

import yaml

from rendering import K8S, KUBECTL, one


def training_manifests(store: str) -> list[dict[str, Any]]:
    """store: where the pods send checkpoints."""
    done = subprocess.run([KUBECTL, "kustomize", K8S / "training"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    one(objects, "ConfigMap", "cmt-training")["data"]["CMT_STORE"] = store
    return objects
