"""From what one pod can do to a cluster: replicas, nodes, what drives the cost, and where it stops being linear."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmt_perf.capacity import ServiceCurve, latencies_at, most_within, percentiles

#: Bounds that Kubernetes states for one cluster (kubernetes.io, "Considerations for large clusters").
MOST_NODES, MOST_PODS, MOST_PODS_A_NODE = 5_000, 150_000, 110
ENDPOINTS_A_SLICE = 100
MANY_ENDPOINTS = 1_000  # a change of one then reaches every node's proxy as a lot of traffic
ROLLOUT_MINUTES = 30.0  # that an upgrade of all pods should take at most
SYSTEM_SHARE = 0.1  # of a node's cores and memory, for the kubelet and daemons


class CannotPlan(ValueError):
    """No number of replicas meets the demand; the message says why."""


@dataclass(frozen=True)
class Demand:
    """rate: mean requests a second; peak: the busiest moment's rate over that; percentile: share within slo_ms."""

    rate: float
    slo_ms: float
    percentile: float = 0.95
    peak: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (("rate", 0.0), ("slo_ms", 0.0)):
            if getattr(self, name) <= low:
                raise ValueError(f"{name}: got {getattr(self, name):g}; expected more than {low:g}")
        if not 0.5 <= self.percentile < 1:
            raise ValueError(f"percentile: got {self.percentile:g}; expected 0.5 or more and less than 1")
        if self.peak < 1:
            raise ValueError(f"peak: got {self.peak:g}; expected 1 or more: the busiest rate over the mean one")


@dataclass(frozen=True)
class Machines:
    """Of the nodes, and what a pod asks of them. node_price: an hour of one, in whatever currency; None: not known."""

    node_cores: int = 16
    node_memory_gib: float = 64.0
    pod_memory_gib: float = 4.0
    zones: int = 3
    start_s: float = 60.0  # from a pod's creation to its first answer
    release_mib: float = 1_000.0
    node_price: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is needed at a rate. per_replica: requests a second that one pod takes within the SLO.

    replicas: enough for the peak with one zone gone; load: share of saturation at the peak with all there; surge: pods
    that an upgrade must start at a time to be done in ROLLOUT_MINUTES.
    """

    rate: float
    per_replica: float
    needed: int
    replicas: int
    load: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    nodes: int
    clusters: int
    network_gbps: float
    surge: int
    upgrade_pull_gbps: float
    price_per_hour: float | None
    price_per_million: float | None
    limits: tuple[str, ...]


def plan_for(curve: ServiceCurve, demand: Demand, machines: Machines, per_replica: float | None = None) -> Plan:
    """The plan for a demand. per_replica: as `rate_of_a_replica` found it before. Raises CannotPlan."""
    each = rate_of_a_replica(curve, demand) if per_replica is None else per_replica
    busiest = demand.rate * demand.peak
    needed = math.ceil(busiest / each)
    replicas = max(2, math.ceil(needed * machines.zones / (machines.zones - 1)) if machines.zones > 1 else needed + 1)
    a_node = pods_a_node(curve, machines)
    nodes = max(min(machines.zones, replicas), math.ceil(replicas / a_node))
    clusters = max(math.ceil(nodes / MOST_NODES), math.ceil(replicas / MOST_PODS))
    surge = max(1, math.ceil(replicas * machines.start_s / (60 * ROLLOUT_MINUTES)))
    found = percentiles(latencies_at(curve, busiest / replicas))
    price = None if machines.node_price is None else nodes * machines.node_price
    return Plan(
        rate=demand.rate,
        per_replica=each,
        needed=needed,
        replicas=replicas,
        load=busiest / replicas / curve.saturation,
        p50_ms=found["p50_ms"],
        p95_ms=found["p95_ms"],
        p99_ms=found["p99_ms"],
        nodes=nodes,
        clusters=clusters,
        network_gbps=busiest * curve.request_bytes * 8 / 1e9,
        surge=surge,
        upgrade_pull_gbps=surge * machines.release_mib * 2**20 * 8 / machines.start_s / 1e9,
        price_per_hour=price,
        price_per_million=None if price is None else price / (demand.rate * 3600) * 1e6,
        limits=tuple(_limits(needed, replicas, nodes, clusters, surge)),
    )


def rate_of_a_replica(curve: ServiceCurve, demand: Demand) -> float:
    """Requests a second that one takes within the SLO. Raises CannotPlan where it can't even answer a single one."""
    each = most_within(curve, demand.slo_ms, demand.percentile)
    if each <= 0:
        alone = curve.points[0]
        raise CannotPlan(
            f"one request alone takes {alone.p50_ms:.0f} ms (p95 {alone.p95_ms:.0f} ms) on {curve.cores} cores; "
            f"expected {demand.percentile:.0%} within {demand.slo_ms:g} ms: more replicas make no request faster. Give "
            "pods more cores or a GPU, serve a lower precision or a smaller preset, or allow more time"
        )
    return each


def growth(curve: ServiceCurve, demand: Demand, machines: Machines, most: float = 1e7) -> list[Plan]:
    """Plans for the rate, ten times it, and so on until `most` requests a second."""
    each = rate_of_a_replica(curve, demand)
    plans, rate = [], demand.rate
    while rate <= max(most, demand.rate):
        plans.append(plan_for(curve, Demand(rate, demand.slo_ms, demand.percentile, demand.peak), machines, each))
        rate *= 10
    return plans


def pods_a_node(curve: ServiceCurve, machines: Machines) -> int:
    """How many fit. Raises CannotPlan when none does."""
    by_cores = int(machines.node_cores * (1 - SYSTEM_SHARE) // curve.cores)
    by_memory = int(machines.node_memory_gib * (1 - SYSTEM_SHARE) // machines.pod_memory_gib)
    fits = min(by_cores, by_memory, MOST_PODS_A_NODE)
    if fits < 1:
        raise CannotPlan(
            f"a pod of {curve.cores} cores and {machines.pod_memory_gib:g} GiB doesn't fit a node of "
            f"{machines.node_cores} cores and {machines.node_memory_gib:g} GiB, of which {SYSTEM_SHARE:.0%} are the "
            "system's: take larger nodes"
        )
    return fits


def _limits(needed: int, replicas: int, nodes: int, clusters: int, surge: int) -> list[str]:
    """What isn't in proportion to the rate at this size."""
    found = []
    if needed <= 2:
        found.append(f"{replicas} replicas are for availability: {needed} would carry the load")
    if surge > 1:
        found.append(f"an upgrade within {ROLLOUT_MINUTES:g} min starts {surge} pods at a time: raise maxSurge from 1")
    if replicas > ENDPOINTS_A_SLICE:
        found.append(f"{replicas} endpoints: a client that connects to all holds as many connections; balance by proxy")
    if replicas > MANY_ENDPOINTS:
        found.append("every change of pods is propagated to every node: several Services, each with a part of the pods")
    if clusters > 1:
        found.append(f"{nodes} nodes need {clusters} clusters of {MOST_NODES}, and something before them that divides")
    return found
