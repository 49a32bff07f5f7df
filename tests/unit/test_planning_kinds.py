"""Plans of tables of several kinds, widths and optimizers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infnet_dist.errors import PlanError
from infnet_dist.lookups import Lookups
from infnet_dist.model.sparse import SparseArch
from infnet_dist.planning.checks import check_plan
from infnet_dist.planning.costs.estimator import Estimator, empty_cluster
from infnet_dist.planning.costs.options import enumerate_options
from infnet_dist.planning.diff import diff_plans
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import extend_plan, make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.review.render import describe
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet, load_table_set
from infnet_dist.planning.to_cpu import to_cpu
from infnet_dist.planning.topology import Topology, load_topology, this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from tests.mixed import SCHEMA, config_of


def run_tables(**overrides: dict[str, Any]) -> TableSet:
    return tables_of_run(config_of(overrides=overrides), SCHEMA)


def table(name: str, rows: int = 1_000, width: int = 16, **more: Any) -> PlanTable:
    length = more.pop("length", 1.0)
    features = (PlanFeature(name=name, mean_length=length),)
    return PlanTable(name=name, num_embeddings=rows, embedding_dim=width, features=features, **more)


def gpus(num_nodes: int) -> Topology:
    return load_topology("h100x8").model_copy(update={"num_nodes": num_nodes})


MIXED = TableSet(
    batch_size=64,
    tables=(
        table("item", 200_000, 64, pooling="none", length=20.0),
        table("user", 500_000, 32),
        table("tag", 3_000, 8, weighted=True, length=5.0, optimizer="adagrad"),
        table("city", 200, 4, pooling="mean", length=3.0, optimizer="sgd"),
    ),
)


# ---- the tables of a run


def test_a_run_s_tables_have_homes_widths_lengths_and_optimizers() -> None:
    found = run_tables(
        tag={"optimizer": "adagrad"}, place={"trainable": False}, cross={"data_type": "fp16"}
    )
    assert found.optimizer == "rowwise_adagrad"
    known = {t.name: (t.home, t.embedding_dim, t.optimizer) for t in found.tables}
    assert known == {
        "user": ("bag", 8, None),
        "item": ("sequence", 8, None),
        "tag": ("bag", 8, "adagrad"),  # of 6 floats
        "topic": ("weighted", 12, None),
        "place": ("bag", 4, "sgd"),  # no state
        "cross": ("bag", 4, None),
        "author": ("sequence", 4, None),
    }
    assert {t.pooling for t in found.tables} == {"none", "sum"}, "means are made after the lookup"
    lengths = {f.name: f.mean_length for t in found.tables for f in t.features}
    assert lengths["tags"] == 4 and lengths["new_tags"] == 3 and lengths["click.item"] == 3
    assert lengths["user"] == lengths["user_place"] == 1
    assert {f.name for f in found.table("item").features} == {
        *("item", "similar", "liked", "click.item")
    }


ONE_NODE, TWO_NODES = this_topology("cpu", 2, 2), this_topology("cpu", 4, 2)
BAG_TYPES = {"data_parallel", "table_wise", "row_wise"}


@pytest.mark.parametrize(
    ("more", "topology", "expected"),
    [
        ({"pooling": "none"}, ONE_NODE, {"table_wise", "row_wise"}),
        ({"pooling": "none"}, gpus(2), {"table_wise", "row_wise"}),
        ({}, ONE_NODE, BAG_TYPES),
        ({"weighted": True}, ONE_NODE, BAG_TYPES),
        ({"pooling": "mean"}, gpus(1), BAG_TYPES),
        ({}, TWO_NODES, BAG_TYPES | {"table_row_wise"}),
        ({"weighted": True}, gpus(2), BAG_TYPES | {"table_row_wise"}),
        ({"data_type": "fp16"}, gpus(1), {"table_wise", "row_wise"}),
        ({"data_type": "fp16", "sharding_types": ("data_parallel",)}, gpus(1), {"data_parallel"}),
        ({"optimizer": "adam"}, gpus(1), {"table_wise", "row_wise"}),
        ({"sharding_types": ("grid_shard", "row_wise")}, gpus(1), {"row_wise"}),
        ({"sharding_types": ("grid_shard", "row_wise")}, TWO_NODES, {"grid_shard", "row_wise"}),
        ({"sharding_types": ("table_column_wise",)}, ONE_NODE, {"table_column_wise"}),
        ({}, this_topology("cpu", 1, 1), {"table_wise"}),
    ],
)
def test_types_by_default_keep_the_results_and_others_are_asked_for(
    more: dict[str, Any], topology: Topology, expected: set[str]
) -> None:
    wide = table("t", 5_000, 64, **more)
    complete = TableSet(batch_size=64, tables=(wide,)).complete(wide)
    options = enumerate_options(complete, topology, offload=False)
    assert {option.sharding_type for option in options} == expected


def test_types_that_a_table_can_t_have_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        run_tables(
            **{"i*": {"sharding_types": ("row_wise", "data_parallel")}},
            user={"sharding_types": ("data_parallel",), "optimizer": "adam"},
        )
    message = str(caught.value)
    assert all(part in message for part in ("'item'", "'user'", "data_parallel", "adam"))
    assert "'tag'" not in message
    path = tmp_path / "tables.yaml"
    for more, named in (
        ("pooling: mean, sharding_types: [row_wise, grid_shard]", "grid_shard"),
        ("pooling: none, sharding_types: [table_row_wise]", "table_row_wise"),
        ("pooling: none, weighted: true", "weighted"),
        ("sharding_types: [grid_shard]", "grid_shard"),  # on one node
    ):
        path.write_text(
            "batch_size: 64\ntables:\n- {name: a, num_embeddings: 99, embedding_dim: 64, "
            f"features: [{{name: f}}], {more}}}\n"
        )
        with pytest.raises(PlanError, match=rf"'a'.*{named}"):
            make_plan(load_table_set(path), gpus(1))


# ---- plans


@pytest.mark.parametrize("topology", [ONE_NODE, TWO_NODES, gpus(2)], ids=["2", "2x2", "2x8 GPUs"])
def test_small_tables_are_data_parallel_and_large_ones_are_not(topology: Topology) -> None:
    small, large = table("small", 20, 8), table("large", 3_000_000, 8)
    table_set = TableSet(batch_size=512, tables=(small, large))
    costs = Estimator(table_set, topology).costs(offload=False)
    work = costs.arrays.work(empty_cluster(topology))
    types = [option.sharding_type for option in costs.sharding_options]
    for number, name in enumerate(("small", "large")):
        least = min(np.flatnonzero(costs.arrays.table == number), key=lambda i: work[i])
        assert (types[least] == "data_parallel") == (name == "small")
    # Each rank holds a copy with its state.
    plan = make_plan(table_set.replace("small", sharding_types=("data_parallel",)), topology)
    stored = facts(plan)["bytes_by_table"]["small"]["stored_bytes"]
    assert stored == topology.world_size * 20 * (8 + 1) * 4


def test_one_plan_serves_all_collections_of_a_run() -> None:
    plan = make_plan(run_tables(place={"sharding_types": ("data_parallel",)}), ONE_NODE)
    model = SparseArch(Lookups(SCHEMA, config_of()), device=torch.device("meta"))
    found = to_sharding_plan(plan, model, torch.device("cpu")).plan
    assert {path: set(tables) for path, tables in found.items()} == {
        "sequences.8": {"item"},
        "sequences.4": {"author"},
        "bags": {"user", "tag", "place", "cross"},
        "weighted_bags": {"topic"},
    }
    raw = plan.model_dump(mode="json")
    topic = next(t for t in raw["made_for"]["tables"]["tables"] if t["name"] == "topic")
    topic["weighted"] = False
    with pytest.raises(PlanError, match=r"topic.*weighted"):
        to_sharding_plan(type(plan).model_validate(raw), model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"user": {"embedding_dim": 12}}, ("'user'", "x 8 ", "x 12 ")),
        ({"tag": {"optimizer": "adagrad"}}, ("'tag'", "rowwise_adagrad", "adagrad")),
        ({"cross": {"data_type": "fp16"}}, ("'cross'", "fp32", "fp16")),
    ],
)
def test_a_plan_for_other_widths_or_optimizers_is_refused(
    override: dict[str, dict[str, Any]], named: tuple[str, ...]
) -> None:
    plan = make_plan(run_tables(), ONE_NODE)
    check_plan(plan, run_tables(), world_size=2)
    with pytest.raises(PlanError) as caught:
        check_plan(plan, run_tables(**override), world_size=2)
    assert all(part in str(caught.value) for part in named)


def test_a_plan_for_other_kinds_is_refused() -> None:
    plan = make_plan(MIXED, ONE_NODE)
    for change, kinds in (
        ({"pooling": "none", "weighted": False}, ("weighted bag", "sequence")),
        ({"weighted": False}, ("weighted bag", "a bag")),
    ):
        with pytest.raises(PlanError) as caught:
            check_plan(plan, MIXED.replace("tag", **change), world_size=2)
        assert "'tag'" in str(caught.value) and all(kind in str(caught.value) for kind in kinds)
    sums = MIXED.replace("city", pooling="sum")
    check_plan(plan, sums, world_size=2)  # a run makes its means of sums


def test_kinds_and_optimizers_are_kept_shown_and_compared(tmp_path: Path) -> None:
    plan = make_plan(MIXED, gpus(2))
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    text = describe(plan)
    for part in ("sequence", "weighted", "optimizer adagrad: tag", "mean bag"):
        assert part in text
    known = facts(plan)["bytes_by_table"]
    assert known["tag"]["optimizer"] == "adagrad" and known["item"]["kind"] == "sequence"
    assert known["tag"]["stored_bytes"] % (3_000 * 8 * 2 * 4) == 0, "as much state as rows"
    after = extend_plan(plan, TableSet(batch_size=64, tables=(*MIXED.tables, table("new"))))
    found = diff_plans(plan, after)
    assert found.added == ["new"] and not found.changed and not found.moved_bytes
    for change in ({"optimizer": "sgd"}, {"weighted": False}):
        other = MIXED.replace("tag", **change)
        with pytest.raises(PlanError, match="'tag'"):
            extend_plan(plan, other)
        assert set(diff_plans(plan, make_plan(other, gpus(2))).changed) >= {"tag"}


def test_a_state_for_each_column_shard_is_said() -> None:
    asked = MIXED.replace("user", sharding_types=("column_wise",), min_column_width=16)
    plan = make_plan(asked, gpus(1))
    assert facts(plan)["own_states"] == ["user"]
    assert "optimizer state for each column shard: user" in describe(plan)
    exact = make_plan(asked.replace("user", optimizer="adagrad"), gpus(1))
    assert facts(exact)["own_states"] == [] and "column shard: user" not in describe(exact)


def test_all_kinds_convert_to_cpus() -> None:
    heavy = MIXED.replace("user", optimizer="lamb", sharding_types=("grid_shard",))
    heavy = heavy.replace("user", min_column_width=16)
    plan = make_plan(heavy.model_copy(update={"optimizer": "adam"}), gpus(2))
    assert plan.tables["user"].sharding_type == "grid_shard"
    small, lines = to_cpu(plan, ONE_NODE, row_scale=0.01)
    assert [t.kind for t in small.made_for.tables.tables] == [t.kind for t in MIXED.tables]
    assert small.tables["user"].sharding_type == "row_wise"
    assert {small.table(name).optimizer for name in ("user", "item")} == {"rowwise_adagrad"}
    assert small.table("tag").optimizer == "adagrad"
    text = "\n".join(lines)
    assert "adam -> rowwise_adagrad" in text and "user: optimizer lamb -> rowwise_adagrad" in text


def test_plans_of_earlier_versions_load_and_stay_in_use(tmp_path: Path) -> None:
    """They have no kinds beside pooling, no optimizers by table, and column shards by default."""
    wide = table("wide", 100_000, 128, pooling="none", sharding_types=("column_wise",))
    table_set = TableSet(batch_size=64, tables=(wide, table("small", pooling="none")))
    raw = make_plan(table_set, gpus(1)).model_dump(mode="json")
    for one in raw["made_for"]["tables"]["tables"]:
        del one["weighted"], one["optimizer"]
        one["sharding_types"] = None
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    plan = load_plan(tmp_path / "plan.json")
    assert plan.tables["wide"].sharding_type == "column_wise"
    free = table_set.replace("wide", sharding_types=None)
    more = free.model_copy(update={"tables": (*free.tables, table("new"))})
    assert extend_plan(plan, more).tables["wide"] == plan.tables["wide"]
    assert to_cpu(plan, ONE_NODE)[0].tables["wide"].sharding_type == "column_wise"
