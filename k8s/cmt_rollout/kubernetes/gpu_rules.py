"""Rules for manifests that ask for GPUs: what NVIDIA's device plugin offers, and how nodes are labelled for it.

Resources are those of the device plugin: `nvidia.com/gpu`, and `nvidia.com/mig-<profile>` with its `mixed` strategy.
`nvidia.com/gpu.product` is a label of NVIDIA's GPU feature discovery; with the strategy `single` it ends with the
profile (`…-MIG-1g.10gb`), and a slice is asked for as `nvidia.com/gpu`.
"""

from __future__ import annotations

from collections.abc import Iterator

from cmt_rollout.kubernetes.rendered import Manifests, Object, Workload

VENDOR, WHOLE, SLICE = "nvidia.com/", "nvidia.com/gpu", "nvidia.com/mig-"
PRODUCT, MIG = "nvidia.com/gpu.product", "-MIG-"

_OF_80_GB = frozenset({"1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"})
_OF_40_GB = frozenset({"1g.5gb", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"})
_OF_141_GB = frozenset({"1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"})
#: Products -> the profiles that they can be cut into (NVIDIA's MIG user guide, "Supported MIG Profiles"; without those
#: with media extensions); of products that aren't here nothing is known.
PROFILES: dict[str, frozenset[str]] = {
    "NVIDIA-A30": frozenset({"1g.6gb", "2g.12gb", "4g.24gb"}),
    "NVIDIA-A100-SXM4-40GB": _OF_40_GB,
    "NVIDIA-A100-PCIE-40GB": _OF_40_GB,
    "NVIDIA-A100-SXM4-80GB": _OF_80_GB,
    "NVIDIA-A100-80GB-PCIe": _OF_80_GB,
    "NVIDIA-H100-80GB-HBM3": _OF_80_GB,
    "NVIDIA-H100-PCIe": _OF_80_GB,
    "NVIDIA-H100-NVL": frozenset({"1g.12gb", "1g.24gb", "2g.24gb", "3g.47gb", "4g.47gb", "7g.94gb"}),
    "NVIDIA-H200": _OF_141_GB,
    "NVIDIA-H200-NVL": _OF_141_GB,
    "NVIDIA-B200": frozenset({"1g.23gb", "1g.45gb", "2g.45gb", "3g.90gb", "4g.90gb", "7g.180gb"}),
    **dict.fromkeys(("Tesla-T4", "NVIDIA-A10", "NVIDIA-L4", "NVIDIA-L40", "NVIDIA-L40S"), frozenset[str]()),
}


def gpus_are_asked_for(manifests: Manifests) -> Iterator[str]:
    """A container's GPUs are one whole number, said as a limit; its pod goes to nodes of one kind, taints and all."""
    for workload in manifests.workloads:
        for container in workload.containers:
            requests, limits = (container.get("resources", {}).get(of, {}) for of in ("requests", "limits"))
            where = f"{workload.name}: {container['name']}"
            for name in sorted(_gpus(requests) - _gpus(limits)):
                yield f"{where} requests {name} without a limit, which Kubernetes refuses"
            for name in sorted(_gpus(limits)):
                whole = str(limits[name]).isdigit() and int(limits[name]) > 0
                if not whole or requests.get(name, limits[name]) != limits[name]:
                    yield f"{where} asks for {limits[name]} of {name}; expected a whole number, the request the same"
            if len(_gpus(limits)) > 1:
                yield f"{where} asks for {' and '.join(sorted(_gpus(limits)))}; expected one of them"
        if _asked(workload):
            if PRODUCT not in workload.pod.get("nodeSelector", {}):
                yield f"{workload.name} may run on any kind of GPU; its plans run on one: choose it by {PRODUCT}"
            if not any(_tolerates(toleration) for toleration in workload.pod.get("tolerations", ())):
                yield f"{workload.name} doesn't tolerate the taint {WHOLE}, which keeps other pods off GPU nodes"


def slices_exist(manifests: Manifests) -> Iterator[str]:
    """A slice is one that the GPU named can be cut into."""
    for workload in manifests.workloads:
        product, _, labelled = workload.pod.get("nodeSelector", {}).get(PRODUCT, "").partition(MIG)
        for name in _asked(workload):
            if labelled and name != WHOLE:
                yield f"{workload.name} asks for {name} of {product}{MIG}{labelled}, where slices are {WHOLE}"
            profile = labelled or name.removeprefix(SLICE)
            known = PROFILES.get(product)
            if (labelled or name.startswith(SLICE)) and known is not None and profile not in known:
                yield (
                    f"{workload.name} asks for a slice {profile} of {product}, "
                    + (f"which has {', '.join(sorted(known))}" if known else "which can't be cut")
                )


def plans_are_built_where_they_run(manifests: Manifests) -> Iterator[str]:
    """All workloads here that ask for GPUs ask for the same, on the same product."""
    kinds = {
        workload.name: (workload.pod.get("nodeSelector", {}).get(PRODUCT), *_asked(workload))
        for workload in manifests.workloads
        if _asked(workload)
    }
    if len(set(kinds.values())) > 1:
        told = "; ".join(f"{name}: {', '.join(map(str, kind))}" for name, kind in kinds.items())
        yield f"plans run on the kind of GPU that built them, and these differ: {told}"


def _gpus(amounts: Object) -> set[str]:
    return {name for name in amounts if name.startswith(VENDOR)}


def _asked(workload: Workload) -> list[str]:
    return sorted({name for c in workload.containers for name in _gpus(c.get("resources", {}).get("limits", {}))})


def _tolerates(toleration: Object) -> bool:
    return toleration.get("key") in (None, WHOLE) and toleration.get("effect") in (None, "NoSchedule")
