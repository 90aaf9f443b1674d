"""Pods and nodes for a rate: enough with a zone gone, and honest about what no number of pods can do."""

from __future__ import annotations

import math

import pytest

from cmt_perf.capacity import Point, ServiceCurve
from cmt_perf.sizing import MOST_NODES, CannotPlan, Demand, Machines, growth, plan_for, rate_of_a_replica

CURVE = ServiceCurve(
    tuple(Point(n, x, n / x * 1e3, n / x * 1e3, n / x * 1e3) for n, x in ((1, 10.0), (2, 16.0), (4, 22.0), (8, 25.0))),
    (0.9, 1.0, 1.1),
    50_000.0,
    2,
    {},
)
MACHINES = Machines()


@pytest.mark.long
@pytest.mark.parametrize("zones", [1, 2, 3])
@pytest.mark.parametrize("rate", [1.0, 50.0, 5_000.0])
def test_the_slo_holds_with_a_zone_gone(rate: float, zones: int) -> None:
    demand = Demand(rate, 200.0, peak=1.5)
    plan = plan_for(CURVE, demand, Machines(zones=zones))
    left = plan.replicas - math.ceil(plan.replicas / zones) if zones > 1 else plan.replicas - 1
    assert plan.replicas >= 2
    assert left * rate_of_a_replica(CURVE, demand) >= rate * 1.5 * (1 - 1e-9) or left >= plan.needed
    assert plan.p95_ms <= 200.0


def test_nodes_hold_the_pods() -> None:
    plan = plan_for(CURVE, Demand(5_000.0, 200.0), MACHINES)
    assert plan.nodes == math.ceil(plan.replicas / 7)  # 16 cores less the system's tenth, 2 each
    assert plan.network_gbps == pytest.approx(5_000 * 50_000 * 8 / 1e9)


@pytest.mark.long
def test_growth_ends_being_linear_where_a_cluster_ends() -> None:
    plans = growth(CURVE, Demand(10.0, 200.0), MACHINES)
    assert [plan.rate for plan in plans] == [10.0**n for n in range(1, 8)]
    assert "for availability" in plans[0].limits[0]
    assert plans[-1].clusters == math.ceil(plans[-1].nodes / MOST_NODES) > 1
    assert any("clusters" in limit for limit in plans[-1].limits)
    assert plans[3].replicas / plans[2].replicas == pytest.approx(10, rel=0.02)


@pytest.mark.long
def test_money_is_that_of_the_nodes() -> None:
    plan = plan_for(CURVE, Demand(100.0, 200.0), Machines(node_price=2.0))
    assert plan.price_per_hour == 2.0 * plan.nodes
    assert plan.price_per_million == pytest.approx(2.0 * plan.nodes / 0.36)
    assert plan_for(CURVE, Demand(100.0, 200.0), MACHINES).price_per_hour is None


def test_more_pods_make_no_request_faster() -> None:
    with pytest.raises(CannotPlan, match=r"one request alone takes 100 ms .*within 50 ms.*lower precision"):
        plan_for(CURVE, Demand(1.0, 50.0), MACHINES)


def test_a_pod_that_fits_no_node_is_told() -> None:
    with pytest.raises(CannotPlan, match="take larger nodes"):
        plan_for(CURVE, Demand(1.0, 200.0), Machines(node_cores=2))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0.0, 100.0), "rate: got 0"),
        ((1.0, -1.0), "slo_ms: got -1"),
        ((1.0, 100.0, 1.0), "percentile: got 1"),
        ((1.0, 100.0, 0.95, 0.5), "peak: got 0.5"),
    ],
)
def test_demands_that_are_none_are_refused(arguments: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Demand(*arguments)
