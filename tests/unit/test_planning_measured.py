"""Measured costs: the work of a shard, the fixed costs of exchanges, and the plans they lead to."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from infnet_dist.errors import PlanError
from infnet_dist.planning.costs.estimator import Estimator, empty_cluster
from infnet_dist.planning.costs.measured import ExchangeCosts, Measured, RowCosts
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.times import Exchange
from infnet_dist.planning.costs.work import work_of
from infnet_dist.planning.estimates import estimate_plan
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.review.throughput import DensePart, assumptions, estimate_step
from infnet_dist.planning.search.placement import RankLoads
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import Topology, load_topology, save_topology, this_topology
from infnet_dist.sharding.calibration.calibrate import fit_costs, fit_exchange, fit_rows
from infnet_dist.sharding.calibration.cases import Case
from ray_jobs.plan import main

BATCH = 100
SHARDED = ("table_wise", "row_wise", "column_wise")


def measured(**changes: object) -> Measured:
    rows = RowCosts(feature_ms=0.05, id_ms=1e-4, id_byte_ms=1e-7, row_ms=2e-4, row_byte_ms=3e-7)
    costs = ExchangeCosts(fixed_ms=2.0, feature_ms=0.1, id_ms=1e-4, byte_ms=1e-6)
    return Measured(
        num_nodes=1,
        workers_per_node=2,
        lookup={"sequence": rows, "bag": rows},
        update={"sequence": rows, "bag": rows},
        update_factors={"fp16 rowwise_adagrad": 0.5},
        exchange={
            f"{kind} {name}": costs
            for kind in ("sequence", "bag")
            for name in ("table_wise", "row_wise", "data_parallel")
        },
    ).model_copy(update=changes)


def topology(ranks: int, *, nodes: int = 1, **changes: object) -> Topology:
    return Topology(
        name="test",
        device="cpu",
        num_nodes=nodes,
        workers_per_node=ranks // nodes,
        ddr_gib=16,
        ddr_gb_s=7,
        intra_node_gb_s=2,
        inter_node_gb_s=0.5,
    ).model_copy(update=changes)


def table(name: str = "t", **changes: object) -> PlanTable:
    given = {"pooling": "none", "features": (PlanFeature(name=f"f_{name}", mean_length=3.0),)}
    return PlanTable(
        name=name, **({"num_embeddings": 5_000, "embedding_dim": 16} | given | changes)
    )


@pytest.mark.parametrize(
    ("sharding_type", "ids", "outputs"),
    [
        ("table_wise", 4 * BATCH * 3, 4 * BATCH * 3 * 16 * 4),
        ("row_wise", BATCH * 3, BATCH * 3 * 16 * 4),
        ("column_wise", 4 * BATCH * 3, 4 * BATCH * 3 * 8 * 4),
    ],
)
def test_work_of_a_sequences_shard(sharding_type: str, ids: int, outputs: int) -> None:
    columns = 8 if sharding_type == "column_wise" else 16
    option = ShardingOption(sharding_type, "fused", columns)
    work = work_of(table(), option, topology(4), BATCH)
    assert (work.features, work.ids, work.id_bytes) == (1, ids, ids * columns * 4)
    assert work.output_bytes == outputs
    distinct = 5_000 * (1 - math.exp(-4 * BATCH * 3 / 5_000))
    share = 4 if sharding_type == "row_wise" else 1
    assert work.rows == pytest.approx(distinct / share, rel=1e-3)
    assert work.row_bytes == work.rows * columns * 4


def test_work_of_bags_by_type() -> None:
    bag = table(pooling="sum", data_type="fp16")
    sums = BATCH * 16 * 4
    whole = work_of(bag, ShardingOption("table_wise", "fused", 16), topology(4), BATCH)
    rows = work_of(bag, ShardingOption("row_wise", "fused", 16), topology(4), BATCH)
    assert whole.output_bytes == rows.output_bytes == 4 * sums
    assert (whole.ids, rows.ids, whole.id_bytes) == (1_200, 300, 1_200 * 32)
    copy = work_of(bag, ShardingOption("data_parallel", "dense", 16), topology(4), BATCH)
    assert (copy.ids, copy.output_bytes) == (300, 5_000 * 16 * 2)
    assert copy.link_ms("data_parallel", topology(4)) == topology(4).all_reduce_ms(160_000)


def test_bytes_between_nodes_take_the_slower_link() -> None:
    work = work_of(table(), ShardingOption("table_wise", "fused", 16), topology(4), BATCH)
    sent = 2 * work.output_bytes + 8 * work.ids
    assert work.link_ms("table_wise", topology(4)) == pytest.approx(sent * 3 / 4 / 2e6)
    two_nodes = sent * (1 / 4 / 2e6 + 2 / 4 / 0.5e6)
    assert work.link_ms("table_wise", topology(4, nodes=2)) == pytest.approx(two_nodes)
    assert work.link_ms("table_wise", topology(1)) == 0


def test_an_exchange_costs_its_collectives() -> None:
    one = Exchange("sequence", 16, "row_wise")
    assert one.fixed_ms(topology(4)) == 0
    assert one.fixed_ms(topology(4, collective_ms=0.5)) == 5 * 0.5 * 2
    assert one.fixed_ms(topology(1, collective_ms=0.5)) == 0
    assert one._replace(sharding_type="data_parallel").fixed_ms(topology(2, collective_ms=1)) == 1
    known = topology(4, collective_ms=0.5, measured=measured())
    assert one.fixed_ms(known) == 2.0 + 5
    shared = known.model_copy(update={"measured": measured(cores=2)})
    assert one.fixed_ms(shared) == 2 * (2.0 + 5)


def tables(*widths: int, **changes: object) -> TableSet:
    return TableSet(
        batch_size=BATCH,
        tables=tuple(
            table(f"t{i}", embedding_dim=width, num_embeddings=1_000 * (i + 1), **changes)
            for i, width in enumerate(widths)
        ),
    )


def test_times_are_linear_in_the_measured_costs() -> None:
    known = topology(2, measured=measured())
    table_set = tables(16)
    plan = estimate_plan(table_set, known, {"t0": (ShardingOption("row_wise", "fused", 16), ())})
    work = work_of(table_set.tables[0], plan.tables["t0"].sharding_option, known, BATCH)
    entry = plan.tables["t0"]
    rows = measured().lookup["sequence"].coefficients @ work.row_quantities
    assert entry.lookup_ms == pytest.approx(2 * rows, abs=1e-6)
    exchange = 0.1 + 1e-4 * work.ids + 1e-6 * work.output_bytes
    assert entry.comms_ms == pytest.approx(exchange + work.link_ms("row_wise", known), abs=1e-6)
    assert plan.exchange_ms == 2.0
    assert plan.bottleneck_ms == pytest.approx(entry.time_ms + 2.0, abs=1e-6)

    half = tables(16, data_type="fp16")
    plan = estimate_plan(half, known, {"t0": (ShardingOption("row_wise", "fused", 16), ())})
    work = work_of(half.tables[0], plan.tables["t0"].sharding_option, known, BATCH)
    rows = measured().lookup["sequence"].coefficients @ work.row_quantities
    assert plan.tables["t0"].lookup_ms == pytest.approx(1.5 * rows, abs=1e-6)


def test_a_dear_exchange_is_avoided() -> None:
    table_set = tables(*[64] * 3)
    cheap = make_plan(table_set, topology(2))
    assert {entry.sharding_type for entry in cheap.tables.values()} == {"table_wise", "row_wise"}
    assert cheap.exchange_ms == 0
    dear = make_plan(table_set, topology(2, collective_ms=10))
    assert len({entry.sharding_type for entry in dear.tables.values()}) == 1
    assert dear.exchange_ms == 50


@pytest.mark.parametrize("collective_ms", [0.0, 0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("widths", [(16, 16, 16), (16, 16, 32), (64, 64, 64, 64)])
def test_plans_are_close_to_the_best_of_all(widths: tuple[int, ...], collective_ms: float) -> None:
    known, table_set = topology(2, collective_ms=collective_ms), tables(*widths)
    plan = make_plan(table_set, known)
    costs, cluster = Estimator(table_set, known).costs(offload=False), empty_cluster(known)
    options = [np.flatnonzero(costs.arrays.table == i) for i in range(len(widths))]
    choices = [
        [
            (int(o), units)
            for o in some
            for units in ([()] if costs.arrays.place[o] == 2 else [(0,), (1,)])
        ]
        for some in options
    ]
    best = math.inf
    for chosen in itertools.product(*choices):
        loads = RankLoads(costs.arrays, cluster)
        for option, units in chosen:
            loads.add_units(option, units)
        used = np.array([option for option, _ in chosen])
        best = min(best, float(loads.time.max()) + costs.exchanges.total_ms(used))
    assert plan.lower_bound_ms <= best * (1 + 1e-6)
    assert best * (1 - 1e-6) <= plan.bottleneck_ms <= best * 1.03


def test_costs_are_recovered_from_exact_times() -> None:
    generator = np.random.default_rng(0)
    quantities = generator.uniform(1, 1e6, (12, 3)) * [1e-3, 1, 1e3]
    costs = np.array([0.2, 0.0, 3e-8])
    np.testing.assert_allclose(
        fit_costs(quantities, quantities @ costs), costs, rtol=1e-6, atol=1e-12
    )
    noisy = fit_costs(quantities, quantities @ costs * generator.uniform(0.8, 1.2, 12))
    assert (noisy >= 0).all()


def test_a_calibration_predicts_what_it_was_fitted_to() -> None:
    shapes = ((1, 1_000, 16, 64, 1), (8, 1_000, 16, 64, 1), (4, 1_000, 16, 512, 10))
    shapes += ((4, 1_000, 64, 512, 10), (4, 50_000, 16, 512, 10), (4, 50_000, 64, 512, 3))
    known = topology(2, collective_ms=0.25, measured=measured())
    for sharding_type in ("table_wise", "row_wise"):
        cases = [Case("sequence", sharding_type, *shape) for shape in shapes]
        plans = [case.plan(known) for case in cases]
        exchange = [plan.ranks.comms_ms[0] + plan.exchange_ms for plan in plans]
        found = fit_exchange(cases, exchange, known.model_copy(update={"measured": None}))
        expected = measured().exchange["sequence row_wise"]
        np.testing.assert_allclose(found.coefficients, expected.coefficients, rtol=1e-3, atol=1e-9)
        assert found.fixed_ms == pytest.approx(expected.fixed_ms, rel=1e-3)
        lookups = [plan.ranks.lookup_ms[0] / 2 for plan in plans]
        rows = fit_rows(cases, lookups, known)
        works = [case.work(known).row_quantities for case in cases]
        np.testing.assert_allclose(np.array(works) @ rows.coefficients, lookups, rtol=1e-3)


def test_topologies_and_plans_with_costs_are_saved_whole(tmp_path: Path) -> None:
    known = topology(2, measured=measured(), all_reduce_gb_s=0.7)
    save_topology(known, tmp_path / "known.json")
    assert load_topology(tmp_path / "known.json") == known
    plan = make_plan(tables(16, 16), known)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    with pytest.raises(PlanError, match="folder"):
        save_topology(known, tmp_path / "folder" / "known.json")
    (tmp_path / "bad.json").write_text('{"name": "bad", "measured": {"cores": -1}}')
    with pytest.raises(PlanError, match=r"bad\.json"):
        load_topology(tmp_path / "bad.json")


def test_a_run_takes_the_costs_and_keeps_its_own_memory(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    save_topology(topology(2, measured=measured()), path)
    here = this_topology("cpu", 4, 4, bytes_per_worker=2**30, like=path)
    assert (here.world_size, here.ddr_gib, here.measured) == (4, 4.0, measured())
    with pytest.raises(PlanError, match="h100x8"):
        this_topology("cpu", 2, 2, like="h100x8")


def test_a_step_is_the_sum_of_its_parts() -> None:
    known = topology(4, collective_ms=0.5, measured=measured(cores=2))
    plan = make_plan(tables(16, 16), known)
    step = estimate_step(plan, DensePart(10.0, 1_000_000))
    assert step.lookups_ms == plan.bottleneck_ms
    assert step.dense_ms == 20.0  # 4 workers on 2 cores
    assert step.all_reduce_ms == pytest.approx(2 * (known.all_reduce_ms(4e6) + 2 * 0.5 * 2))
    assert step.ms == sum(step)
    alone = estimate_step(
        make_plan(tables(16), topology(1, measured=measured())), DensePart(10.0, 5)
    )
    assert alone.all_reduce_ms == 0
    assert [
        len(assumptions(one)) for one in (topology(2), topology(2, measured=measured()), known)
    ] == [
        *(1, 1, 3)  # known: more workers than measured, on shared cores
    ]


def test_whatif_predicts_whole_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_topology(topology(2, measured=measured()), tmp_path / "known.json")
    (tmp_path / "tables.yaml").write_text(
        "batch_size: 64\ntables: [{name: a, num_embeddings: 1000, embedding_dim: 16, features: "
        "[{name: a}]}]\n"
    )
    command = ["whatif", "--tables", str(tmp_path / "tables.yaml"), "--world-size", "2,8"]
    command += ["--topology", str(tmp_path / "known.json")]
    main([*command, "--dense-ms", "5", "--dense-parameters", "1000", "--json"])
    two, eight = json.loads(capsys.readouterr().out)
    assert two["step"]["dense_ms"] == eight["step"]["dense_ms"] == 5
    for row in (two, eight):
        parts = [row["step"][name] for name in ("lookups_ms", "dense_ms", "all_reduce_ms")]
        assert row["step"]["ms"] == pytest.approx(sum(parts))
        expected = 1000 * 64 * row["world_size"] / row["step"]["ms"]
        assert row["step"]["samples_per_s"] == pytest.approx(expected)
    main([*command, "--dense-ms", "5"])
    assert "Whole steps" in capsys.readouterr().out
    with pytest.raises(PlanError, match="--dense-ms"):
        main([*command, "--dense-parameters", "1000"])
    with pytest.raises(PlanError, match="--config"):
        main(["calibrate", "--launcher", "ray", "--output", str(tmp_path / "x.json")])
    with pytest.raises(PlanError, match=r"\.json"):
        main(["calibrate", "--output", str(tmp_path / "x.yaml")])
