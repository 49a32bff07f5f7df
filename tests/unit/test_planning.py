"""Plan files: made, saved, loaded, checked, extended, compared; and what is said when one fails."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from infnet_dist.config.run import Config, DataConfig
from infnet_dist.config.tables import TableConfig, TablesConfig
from infnet_dist.data.statistics import TableUsage
from infnet_dist.errors import PlanError
from infnet_dist.lookups import Lookups
from infnet_dist.model.sparse import SparseArch
from infnet_dist.planning.checks import check_plan
from infnet_dist.planning.costs.sizes import row_bytes
from infnet_dist.planning.diff import diff_plans
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import extend_plan, make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.review.page import write_html, write_png
from infnet_dist.planning.review.render import describe
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet, load_table_set
from infnet_dist.planning.to_cpu import to_cpu
from infnet_dist.planning.topology import FOLDER, Topology, load_topology, this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from tests.unit.test_reader import SCHEMA


def run_tables(**types: tuple[str, ...]) -> TableSet:
    """The tables of the tests' schema, with allowed sharding types by table."""
    tables = TablesConfig(
        embedding_dim=8, overrides={n: TableConfig(sharding_types=t) for n, t in types.items()}
    )
    config = Config(data=DataConfig(path=Path("unused"), batch_size=64), tables=tables)
    schema_keys = [feature.key for feature in SCHEMA.table_features]
    lengths = {key: 2.5 if key.startswith("click.") else 1.0 for key in schema_keys}
    tables = [table.name for table in SCHEMA.tables]
    few = dict.fromkeys(tables, 10)  # too few to tell the skew
    return tables_of_run(config, SCHEMA, TableUsage(lengths, few, few))


def cpu(world_size: int) -> Topology:
    return this_topology("cpu", world_size, world_size)


def gpus(num_nodes: int) -> Topology:
    return load_topology("h100x8").model_copy(update={"num_nodes": num_nodes})


def make_tables(count: int, *, first: int = 0, seed: int = 0, pooling: str = "sum") -> TableSet:
    rng = np.random.default_rng(seed)
    tables = [
        PlanTable(
            name=f"t{i}",
            num_embeddings=int(10 ** rng.uniform(3, 8.3)),
            embedding_dim=int(rng.choice([16, 64, 128])),
            pooling=pooling,
            features=(PlanFeature(name=f"f{i}", mean_length=float(rng.choice([1, 5, 30]))),),
        )
        for i in range(count)
    ]
    return TableSet(batch_size=256, tables=tuple(tables[first:]))


def assert_tiled(plan: Plan) -> None:
    """Each cell of each table is held exactly once; by every rank under data_parallel."""
    for name, entry in plan.tables.items():
        table = plan.made_for.tables.table(name)
        shards = plan.shards(name)
        cells = sum(shard.rows * shard.columns for shard in shards)
        copies = len(shards) if entry.sharding_type == "data_parallel" else 1
        assert cells == copies * table.num_embeddings * table.embedding_dim
        for a, b in pairwise(shards) if copies == 1 else ():
            apart_rows = a.row_offset + a.rows <= b.row_offset
            assert apart_rows or a.column_offset + a.columns <= b.column_offset


# ---- made, saved, loaded


def test_sharding_types_are_obeyed_and_every_row_has_a_place() -> None:
    types = {"row": ("row_wise",), "author": ("table_wise",), "price": ("table_wise",)}
    plan = make_plan(run_tables(**types), cpu(3))
    assert {n: (t.sharding_type,) for n, t in plan.tables.items()} == types
    shards = plan.shards("row")
    assert [s.rank for s in shards] == [0, 1, 2]
    assert [s.rows for s in shards] == [333_334, 333_334, 333_332]
    assert_tiled(plan)
    # a million rows of 8 floats and one float of row-wise state, and the small tables
    assert sum(plan.ranks.stored_bytes) == (1_000_000 + 50 + 5) * 9 * 4


@pytest.mark.parametrize("pooling", ["sum", "none"])
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_the_loads_of_the_ranks_add_up(num_nodes: int, pooling: str) -> None:
    table_set = make_tables(25, pooling=pooling)
    plan = make_plan(table_set, gpus(num_nodes))
    assert_tiled(plan)
    time = np.zeros(num_nodes * 8)
    stored = np.zeros(num_nodes * 8)
    for name, entry in plan.tables.items():
        table = table_set.table(name)
        for shard in plan.shards(name):
            time[shard.rank] += entry.time_ms
            part = table.model_copy(update={"embedding_dim": shard.columns})
            stored[shard.rank] += shard.rows * row_bytes(part, "rowwise_adagrad")
    np.testing.assert_allclose(plan.ranks.time_ms, time, rtol=1e-6)
    np.testing.assert_allclose(plan.ranks.stored_bytes, stored, rtol=1e-9)
    assert (plan.memory <= plan.made_for.topology.capacity).all()
    assert plan.lower_bound_ms <= plan.bottleneck_ms * (1 + 1e-6)
    kinds = {entry.sharding_type for entry in plan.tables.values()}
    if pooling == "none":
        assert kinds <= {"table_wise", "row_wise", "column_wise"}
        assert any("EmbeddingCollection" in line for line in plan.excluded)


def test_round_trip_and_same_input_same_bytes(tmp_path: Path) -> None:
    for table_set, topology in ((run_tables(), cpu(2)), (make_tables(12), gpus(2))):
        plan = make_plan(table_set, topology)
        save_plan(plan, tmp_path / "a.json")
        save_plan(make_plan(table_set, topology), tmp_path / "b.json")
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
        assert load_plan(tmp_path / "a.json") == plan
        json.loads((tmp_path / "a.json").read_text())
        assert max(map(len, (tmp_path / "a.json").read_text().splitlines())) < 600


def test_rows_leave_hbm_only_where_they_must() -> None:
    table_set = make_tables(12)
    roomy = make_plan(table_set, gpus(1))
    assert {t.compute_kernel for t in roomy.tables.values()} <= {"fused", "dense"}
    need = sum(roomy.ranks.hbm_bytes) / 2**30
    small = gpus(1).model_copy(update={"hbm_gib": need * 0.6, "reserve": 0.0})
    tight = make_plan(table_set, small)
    kernels = {t.compute_kernel for t in tight.tables.values()}
    assert kernels & {"fused_uvm", "fused_uvm_caching"}
    assert (tight.memory <= small.capacity).all()
    assert tight.bottleneck_ms > roomy.bottleneck_ms


def test_offloading_a_cold_table_may_beat_hbm_alone() -> None:
    def table(name: str, rows: int, length: float) -> PlanTable:
        feature = PlanFeature(name=name, mean_length=length)
        return PlanTable(
            name=name,
            num_embeddings=rows,
            embedding_dim=128,
            features=(feature,),
            sharding_types=("table_wise", "row_wise"),
        )

    hot = [table(f"hot{i}", 100_000, 200.0) for i in range(6)]
    table_set = TableSet(batch_size=8_192, tables=(table("cold", 1_080_000_000, 0.01), *hot))
    plan = make_plan(table_set, gpus(1).model_copy(update={"reserve": 0.0}))
    for kernels in (("fused",), ("fused_uvm",), ("fused_uvm_caching",)):
        try:
            alone = make_plan(
                table_set.replace("cold", compute_kernels=kernels),
                plan.made_for.topology,
                advise=False,
            )
        except PlanError:
            continue
        assert plan.bottleneck_ms <= alone.bottleneck_ms * 1.001
        assert plan.lower_bound_ms <= alone.bottleneck_ms * (1 + 1e-6)


def test_priority_keeps_a_table_in_hbm() -> None:
    # Two tables alike, room for one of them.
    tables = [
        PlanTable(
            name=name,
            num_embeddings=100_000_000,
            embedding_dim=128,
            features=(PlanFeature(name=name),),
            sharding_types=("row_wise",),
            priority=priority,
        )
        for name, priority in (("a", 1.0), ("b", 9.0))
    ]
    topology = gpus(1).model_copy(update={"hbm_gib": 75.0, "reserve": 0.0})
    for order in (tables, tables[::-1]):
        plan = make_plan(TableSet(batch_size=64, tables=tuple(order)), topology)
        assert plan.tables["b"].compute_kernel == "fused"
        assert plan.tables["a"].compute_kernel in ("fused_uvm", "fused_uvm_caching")


def test_ssd_is_used_where_a_table_asks_for_it() -> None:
    table_set = make_tables(3).replace("t1", compute_kernels=("key_value",))
    plan = make_plan(table_set, gpus(1))
    assert plan.tables["t1"].compute_kernel == "key_value"
    assert plan.tables["t1"].memory_bytes["ssd"] > 0
    assert all(e.memory_bytes["ssd"] == 0 for n, e in plan.tables.items() if n != "t1")
    with pytest.raises(PlanError, match=r"'t1'.*key_value"):
        make_plan(table_set, gpus(1).model_copy(update={"ssd_gib": 0.0}))


# ---- TorchRec's plan, and checks against a run


def test_torchrec_plan_names_the_collection_and_the_device() -> None:
    config = Config(
        data=DataConfig(path=Path("unused"), batch_size=64), tables=TablesConfig(embedding_dim=8)
    )
    model = SparseArch(Lookups(SCHEMA, config), device=torch.device("meta"))
    plan = make_plan(run_tables(row=("row_wise",), price=("data_parallel",)), cpu(2))
    for device, place in (("cpu", "rank:1/cpu"), ("cuda", "rank:1/cuda:1")):
        sharding = to_sharding_plan(plan, model, torch.device(device))
        assert {path: set(tables) for path, tables in sharding.plan.items()} == {
            "sequences.8": {"row", "author"},
            "bags": {"price"},
        }
        assert sharding.plan["bags"]["price"].sharding_spec is None
        parameter = sharding.plan["sequences.8"]["row"]
        assert parameter.sharding_type == "row_wise"
        assert parameter.compute_kernel == "fused"
        assert str(parameter.sharding_spec.shards[1].placement) == place
    bags = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="other", num_embeddings=4, embedding_dim=8)]
    )
    with pytest.raises(PlanError, match=r"other.*bags"):
        to_sharding_plan(plan, torch.nn.ModuleDict({"bags": bags}), torch.device("cpu"))


def test_every_difference_is_listed() -> None:
    plan = make_plan(run_tables(), cpu(2))
    check_plan(plan, run_tables(), world_size=2, workers_per_node=2)
    other = run_tables().replace("author", embedding_dim=32)
    other = other.model_copy(update={"tables": other.tables[:-1]})
    with pytest.raises(PlanError) as caught:
        check_plan(plan, other, world_size=4, workers_per_node=1)
    message = str(caught.value)
    lines = message.split(": ", 1)[1].split("; ")
    for line, parts in zip(
        lines,
        (
            ("world_size", "2", "4"),
            ("workers_per_node", "2", "1"),
            ("'author'", "50 x 8 fp32", "50 x 32 fp32"),
            ("'price'",),
        ),
        strict=False,
    ):
        assert all(part in line for part in parts), line
    assert "sharding.plan=auto" in message and "infnet plan" in message


def test_a_plan_must_suit_the_kind_of_tables_and_the_device() -> None:
    pooled, sequences = make_tables(6), make_tables(6, pooling="none")
    plan = make_plan(pooled, gpus(1))
    with pytest.raises(PlanError, match=r"'t0'.*bag.*sequence"):
        check_plan(plan, sequences, world_size=8)
    raw = plan.model_dump(mode="json")
    for table in raw["made_for"]["tables"]["tables"]:
        table["pooling"] = "none"
    raw["tables"]["t0"] |= {"sharding_type": "data_parallel", "places": []}
    with pytest.raises(PlanError, match=r"'t0'.*data_parallel"):
        check_plan(Plan.model_validate(raw), sequences, world_size=8)
    cached = sequences.replace("t2", compute_kernels=("fused_uvm",))
    offloaded = make_plan(cached, gpus(1))
    check_plan(offloaded, cached, world_size=8, device="cuda")
    with pytest.raises(PlanError, match=r"'t2'.*fused_uvm"):
        check_plan(offloaded, cached, world_size=8, device="cpu")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("row", {"places": [0]}),
        ("price", {"places": [7]}),
        ("price", {"places": []}),
        ("price", {"columns": 4}),
        ("price", {"sharding_type": "column_wise", "columns": 4, "places": [1, 1]}),
    ],
)
def test_shards_must_tile_the_table(tmp_path: Path, name: str, change: dict[str, object]) -> None:
    plan = make_plan(run_tables(row=("row_wise",), price=("table_wise",)), cpu(2))
    raw = plan.model_dump(mode="json")
    raw["tables"][name] |= change
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(PlanError, match=f"'{name}'"):
        load_plan(tmp_path / "plan.json")


def test_malformed_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "plan.json"
    plan = make_plan(run_tables(), cpu(2))
    with pytest.raises(PlanError, match=r"plan\.json.*sharding\.plan=auto"):
        load_plan(path)
    with pytest.raises(PlanError, match=r"nowhere.*No such file"):
        save_plan(plan, tmp_path / "nowhere" / "plan.json")
    path.write_text("{")
    with pytest.raises(PlanError, match=r"plan\.json.*JSON"):
        load_plan(path)
    older = plan.made_for.model_copy(update={"torchrec_version": "1.0.0"})
    save_plan(plan.model_copy(update={"made_for": older}), path)
    assert load_plan(path).tables == plan.tables
    assert "torchrec 1.0.0" in caplog.text
    raw = plan.model_dump(mode="json")
    path.write_text(json.dumps({"made_for": {"world_size": 2}, "tables": {}}))  # the first format
    with pytest.raises(PlanError, match=r"plan\.json.*format 1.* 2"):
        load_plan(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match=r"plan\.json.*JSON"):
        load_plan(path)
    for change, message in (
        ({"format_version": 1}, r"plan\.json.*format 1.* 2"),
        ({"ranks": raw["ranks"] | {"lookup_ms": [1.0]}}, r"ranks\.lookup_ms.* 1 .* 2"),
        ({"lower_bound_ms": "x"}, "lower_bound_ms: .*number"),
        ({"tables": raw["tables"] | {"row": {}}}, r"tables\.row\."),
        ({"tables": {k: v for k, v in raw["tables"].items() if k != "row"}}, "'row'"),
    ):
        path.write_text(json.dumps(raw | change))
        with pytest.raises(PlanError, match=message):
            load_plan(path)


# ---- bad input


def tables_yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tables.yaml"
    path.write_text("batch_size: 64\ntables:\n" + text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, num_embeddings: 0, embedding_dim: 8, features: [{name: f}]}", "at least 1"),
        (
            "- {name: a, num_embeddings: 9, embedding_dim: 6, features: [{name: f}]}",
            "multiple of 4",
        ),
        (
            "- {name: a, num_embeddings: 9, embedding_dim: 8, features: []}",
            "features.*1 or more entries",
        ),
        (
            "- {name: a, num_embeddings: 9, embedding_dim: 8, features: [{name: f}], sharding: x}",
            "unknown key",
        ),
        (
            "- {name: a, num_embeddings: 9, embedding_dim: 8, features: [{name: f}]}\n"
            "- {name: a, num_embeddings: 9, embedding_dim: 8, features: [{name: g}]}",
            "table.*'a'.* 2 ",
        ),
        (
            "- {name: a, num_embeddings: 9, embedding_dim: 8, features: [{name: f}]}\n"
            "- {name: b, num_embeddings: 9, embedding_dim: 8, features: [{name: f}]}",
            "feature.*'f'.* 2 .*a, b",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        load_table_set(tables_yaml(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bad_topologies(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"h100x9.*a100x8, b200x8, cpu"):
        load_topology("h100x9")
    good = (FOLDER / "h100x8.yaml").read_text()
    path = tmp_path / "mine.yaml"
    for change, message in (
        (("hbm_gb_s: 3350", "hbm_gb_s: .nan"), "hbm_gb_s.*finite number"),
        (("hbm_gb_s: 3350", "hbm_gbs: 3350"), "unknown key 'hbm_gbs'.*did you mean 'hbm_gb_s'"),
        (("inter_node_gb_s: 50", "inter_node_gb_s: 0"), "inter_node_gb_s.*at least"),
    ):
        path.write_text(good.replace(*change))
        with pytest.raises(PlanError, match=message):
            load_topology(path)
    with pytest.raises(PlanError, match=r"12 workers.* 8 .*8 or 16"):
        gpus(1).with_world_size(12)


def test_an_impossible_constraint_is_named() -> None:
    table_set = make_tables(2, pooling="none").replace("t1", sharding_types=("grid_shard",))
    with pytest.raises(PlanError, match=r"'t1'.*grid_shard"):
        make_plan(table_set, gpus(1))


def test_the_error_names_missing_memory_and_changes_that_help() -> None:
    table = PlanTable(
        name="user",
        num_embeddings=1_500_000_000,
        embedding_dim=128,
        features=(PlanFeature(name="user"),),
        compute_kernels=("fused",),
    )
    table_set = TableSet(batch_size=64, optimizer="adam", background_save=False, tables=(table,))
    topology = gpus(1)
    with pytest.raises(PlanError) as caught:
        make_plan(table_set, topology)
    message = str(caught.value)
    assert all(part in message for part in ("8 workers", "h100x8", "hbm", "'user'"))
    assert "32 workers on 4 nodes" in message
    make_plan(table_set, gpus(4))
    lighter = table_set.model_copy(update={"optimizer": "rowwise_adagrad"})
    with pytest.raises(PlanError) as caught:
        make_plan(lighter, topology)
    assert "'user'" in str(caught.value)
    assert "all kernels for table 'user'" in str(caught.value)
    assert make_plan(lighter.replace("user", compute_kernels=None), topology)
    assert "fp16 rows for 'user'" in str(caught.value)
    assert make_plan(lighter.replace("user", data_type="fp16"), topology)


# ---- extended, compared, converted


def test_extending_leaves_every_byte_where_it_is() -> None:
    before = make_plan(make_tables(10), gpus(2))
    after = extend_plan(before, make_tables(14))
    assert {n: after.tables[n] for n in before.tables} == before.tables
    assert set(after.tables) - set(before.tables) == {"t10", "t11", "t12", "t13"}
    found = diff_plans(before, after)
    assert found.added == ["t10", "t11", "t12", "t13"] and not found.moved and not found.changed
    assert after.lower_bound_ms <= after.bottleneck_ms * (1 + 1e-6)
    fewer = extend_plan(before, make_tables(10, first=2))
    assert diff_plans(before, fewer).removed == ["t0", "t1"]


def test_moving_within_a_budget() -> None:
    before = make_plan(make_tables(10), gpus(2))
    table_set = make_tables(30)
    pinned = extend_plan(before, table_set)
    for budget in (1e6, 1e9, 1e13):
        after = extend_plan(before, table_set, max_move_bytes=budget)
        found = diff_plans(before, after)
        assert found.intra_node_bytes + found.inter_node_bytes <= budget
        assert after.bottleneck_ms <= pinned.bottleneck_ms * (1 + 1e-9)


def test_extending_refuses_changed_tables_and_says_when_there_is_no_room() -> None:
    before = make_plan(make_tables(4), gpus(1))
    with pytest.raises(PlanError, match="'t1'"):
        extend_plan(before, make_tables(4).replace("t1", num_embeddings=7))
    huge = make_tables(5).replace("t4", num_embeddings=10**11)
    with pytest.raises(PlanError, match=r"'t4'.* 4 "):
        extend_plan(before, huge)


def test_extending_refuses_another_optimizer_and_makes_room_within_the_budget() -> None:
    before = make_plan(make_tables(4), gpus(1))
    adam = make_tables(4).model_copy(update={"optimizer": "adam"})
    with pytest.raises(PlanError, match=r"optimizer.*rowwise_adagrad.*adam"):
        extend_plan(before, adam)
    larger = make_tables(4).model_copy(update={"batch_size": 400_000_000})
    with pytest.raises(PlanError, match="existing tables"):
        extend_plan(before, larger)

    def table(name: str, gib: float) -> PlanTable:
        return PlanTable(
            name=name,
            num_embeddings=int(gib * 2**30 / 260),
            embedding_dim=64,
            features=(PlanFeature(name=name, mean_length=1),),
            sharding_types=("table_wise",),
            compute_kernels=("fused",),
        )

    # Two workers of 10 GiB with a table of 4 GiB each; 9 GiB more need both of them on one.
    topology = gpus(1).model_copy(update={"workers_per_node": 2, "hbm_gib": 20.0, "reserve": 0.0})
    old = TableSet(batch_size=8, tables=(table("a", 4), table("b", 4)))
    new = TableSet(batch_size=8, tables=(*old.tables, table("c", 9)))
    before = make_plan(old, topology)
    assert before.tables["a"].places != before.tables["b"].places
    with pytest.raises(PlanError, match="--max-move"):
        extend_plan(before, new)
    after = extend_plan(before, new, max_move_bytes=5 * 2**30)
    assert after.tables["a"].places == after.tables["b"].places != after.tables["c"].places
    assert 0 < diff_plans(before, after).moved_bytes <= 5 * 2**30


def test_a_changed_wish_doesn_t_move_a_table() -> None:
    tables = make_tables(4).replace("t1", sharding_types=("column_wise",), embedding_dim=128)
    before = make_plan(tables, gpus(1))
    after = extend_plan(before, tables.replace("t1", sharding_types=("row_wise",)))
    assert after.tables == before.tables


def test_copies_for_all_ranks_count_as_moved() -> None:
    table = PlanTable(
        name="t", num_embeddings=1_000, embedding_dim=64, features=(PlanFeature(name="f"),)
    )
    one = TableSet(batch_size=512, tables=(table,))
    pinned = one.replace("t", sharding_types=("table_wise",))
    before = make_plan(pinned, gpus(1))
    for budget in (1_000, 260_000, 10**7):
        after = extend_plan(before, one, max_move_bytes=budget)
        assert diff_plans(before, after).moved_bytes <= budget


def test_moved_bytes_are_counted_cell_by_cell() -> None:
    table = PlanTable(
        name="t", num_embeddings=23, embedding_dim=8, features=(PlanFeature(name="f"),)
    )
    nodes = gpus(1).model_copy(update={"num_nodes": 2, "workers_per_node": 2})
    plans = {
        kind: make_plan(
            TableSet(
                batch_size=8,
                tables=(
                    table.model_copy(update={"sharding_types": (kind,), "min_column_width": 4}),
                ),
            ),
            nodes,
        )
        for kind in ("row_wise", "table_wise", "table_row_wise", "column_wise", "data_parallel")
    }
    for before in plans.values():
        for after in plans.values():
            intra = inter = 0
            for rank, cell in holders(after):
                where = {r for r, c in holders(before) if c == cell}
                if rank in where:
                    continue
                near = rank // 2 in {r // 2 for r in where}
                intra, inter = intra + near, inter + (not near)
            found = diff_plans(before, after)
            size = row_bytes(table, "rowwise_adagrad") / 8
            assert found.intra_node_bytes == pytest.approx(intra * size)
            assert found.inter_node_bytes == pytest.approx(inter * size)


def holders(plan: Plan) -> list[tuple[int, tuple[int, int]]]:
    """(rank, cell) for every cell that a rank holds."""
    return [
        (s.rank, (row, column))
        for s in plan.shards("t")
        for row in range(s.row_offset, s.row_offset + s.rows)
        for column in range(s.column_offset, s.column_offset + s.columns)
    ]


def test_a_plan_for_gpus_becomes_one_for_cpu_ranks() -> None:
    table_set = make_tables(16).model_copy(update={"optimizer": "adam"})
    table_set = table_set.replace("t3", compute_kernels=("fused_uvm_caching",), data_type="fp16")
    plan = make_plan(table_set, gpus(4))
    converted, lines = to_cpu(plan, cpu(3), row_scale=0.001)
    assert_tiled(converted)
    text = "\n".join(lines)
    assert "optimizer: adam -> rowwise_adagrad" in text
    assert "t3: kernel fused_uvm_caching -> fused" in text
    assert "ranks: 32 -> 3" in text
    for name, entry in converted.tables.items():
        old, new = table_set.table(name), converted.made_for.tables.table(name)
        assert new.num_embeddings == -(-old.num_embeddings // 1000)
        assert f"{name}: {old.num_embeddings} -> {new.num_embeddings} rows" in lines
        assert entry.compute_kernel in ("fused", "dense")
        assert (new.embedding_dim, new.data_type) == (old.embedding_dim, old.data_type)
        same = entry.sharding_type == plan.tables[name].sharding_type
        assert same or f"{name}: {plan.tables[name].sharding_type} of " in text
    with pytest.raises(PlanError, match=r"h100x8.*cuda"):
        to_cpu(plan, gpus(1))
    large = make_plan(make_tables(3).replace("t0", num_embeddings=4 * 10**9), gpus(4))
    with pytest.raises(PlanError, match=r"ddr of rank \d"):
        to_cpu(large, cpu(2))
    with pytest.raises(PlanError, match=r"row scale.* 2"):
        to_cpu(plan, cpu(2), row_scale=2)
    fewer = make_tables(17, first=1).replace("t2", embedding_dim=4)
    with pytest.raises(PlanError) as caught:
        to_cpu(plan, cpu(2), table_set=fewer)
    assert all(f"'{name}'" in str(caught.value) for name in ("t0", "t16", "t2"))


def test_reviews_have_figures_a_page_and_a_picture(tmp_path: Path) -> None:
    plan = make_plan(make_tables(12), gpus(2))
    text = describe(plan)
    for part in ("busiest rank", "lower bound", "hbm, fullest rank", "t11", "not considered"):
        assert part in text
    known = facts(plan)
    assert known["bottleneck_ms"] == max(plan.ranks.time_ms)
    assert known["memory"]["hbm"]["max_bytes"] == max(plan.ranks.hbm_bytes)
    json.dumps(known)
    write_html(plan, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert "data:image/png;base64," in page and "t11" in page
    assert "http" not in page.replace("http-equiv", "")
    write_png(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlanError, match="nowhere"):
        write_html(plan, tmp_path / "nowhere" / "plan.html")
