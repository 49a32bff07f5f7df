"""Calibration on gloo ranks, with small shapes: every cost is there and finite."""

import math

import pytest

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import Topology, this_topology
from infnet_dist.sharding.calibration import calibrate as module
from infnet_dist.sharding.calibration import timing
from tests.ranks import run_ranks

SHAPES = ((1, 50, 8, 4, 1), (2, 50, 8, 4, 2), (2, 50, 16, 8, 2))


def measure(context: WorkerContext, *, ranks_per_node: int) -> Topology:
    topology = this_topology("cpu", context.world_size, ranks_per_node)
    return module.calibrate(context, topology=topology)


@pytest.mark.parametrize(("ranks", "ranks_per_node"), [(1, 1), (2, 2), (2, 1)])
def test_every_cost_is_measured(
    ranks: int, ranks_per_node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOKUPS", SHAPES)
    monkeypatch.setattr(module, "_VARIED", 1)
    monkeypatch.setattr(module, "_SHARDED", SHAPES)
    monkeypatch.setattr(module, "_DATA_PARALLEL", SHAPES)
    monkeypatch.setattr(timing, "_CASE_S", 0.01)
    found, *others = run_ranks(measure, ranks, ranks_per_node=ranks_per_node)
    assert all(other.measured == found.measured for other in others)
    measured = found.measured
    assert (measured.num_nodes, measured.workers_per_node) == (
        ranks // ranks_per_node,
        ranks_per_node,
    )
    assert set(measured.exchange) == {f"{kind} {name}" for kind, name in module.EXCHANGES}
    assert set(measured.lookup) == set(measured.update) == set(module.KINDS)
    assert {"fp16 rowwise_adagrad", "fp32 sgd"} <= set(measured.update_factors)
    for costs in (*measured.lookup.values(), *measured.update.values()):
        assert costs.coefficients.sum() > 0
    before = this_topology("cpu", ranks, ranks_per_node)
    assert (found.collective_ms != before.collective_ms) == (ranks > 1)
    assert (found.intra_node_gb_s != before.intra_node_gb_s) == (ranks_per_node > 1)
    assert (found.inter_node_gb_s != before.inter_node_gb_s) == (ranks > ranks_per_node)

    features = (PlanFeature(name="f"),)
    tables = (PlanTable(name="t", num_embeddings=50, embedding_dim=8, features=features),)
    plan = make_plan(TableSet(batch_size=4, tables=tables), found)
    assert 0 < plan.bottleneck_ms < math.inf
