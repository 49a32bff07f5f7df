"""What a plan's budget counts: rows, state, buffers, copies for saves, processes, containers."""

import json
from pathlib import Path

import pytest

from infnet_dist.config.run import CheckpointConfig, Config, DataConfig, ShardingConfig
from infnet_dist.errors import PlanError
from infnet_dist.planning.checks import check_budget, check_plan, overfull
from infnet_dist.planning.costs.sizes import SAVE_COPY_SHARE
from infnet_dist.planning.host_memory import host_memory_bytes
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import extend_plan, make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.review.render import describe
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet, load_table_set
from infnet_dist.planning.topology import MAX_WORKERS, Topology, load_topology, this_topology
from infnet_dist.sharding.build import get_plan
from ray_jobs.plan import main
from tests.conftest import REPOSITORY
from tests.unit.test_reader import SCHEMA

GIB = 2**30


def table(name: str, rows: int, width: int = 64, length: float = 1.0, **more: object) -> PlanTable:
    feature = PlanFeature(name=name, mean_length=length)
    given = {"pooling": "none"} | more
    return PlanTable(
        name=name, num_embeddings=rows, embedding_dim=width, features=(feature,), **given
    )


def node(gib: float, workers: int = 2) -> Topology:
    cpu = load_topology("cpu")
    return cpu.model_copy(update={"ddr_gib": gib, "workers_per_node": workers, "reserve": 0.0})


def gpus(count: int) -> Topology:
    return load_topology("h100x8").with_world_size(count)


# ---- the copies that a background save takes


def test_a_node_that_is_90_percent_full_has_no_room_for_the_copies_of_a_save() -> None:
    # 9 GiB of 11, one of them for two processes: 36 million rows of 64 floats and one of state.
    rows = int(9 * GIB / (65 * 4))
    table_set = TableSet(batch_size=64, tables=(table("user", rows),))
    waiting = table_set.model_copy(update={"background_save": False})
    assert make_plan(waiting, node(11)).fullest == pytest.approx(9 / 10, abs=0.01)
    with pytest.raises(PlanError) as caught:
        make_plan(table_set, node(11))
    assert "ddr" in str(caught.value) and "checkpoint.background: false" in str(caught.value)
    plan = make_plan(table_set, node(13))
    copies = SAVE_COPY_SHARE * sum(plan.ranks.stored_bytes)
    assert sum(plan.memory[:, 1]) == sum(plan.ranks.ddr_bytes) + copies
    assert facts(plan)["save_copy_bytes"] == int(copies)
    assert (plan.memory <= plan.made_for.topology.capacity).all()


def test_a_data_parallel_table_is_copied_as_a_whole() -> None:
    tables = (
        table("user", 1_000_000),
        table("tag", 10_000, pooling="sum", sharding_types=("data_parallel",)),
    )
    plan = make_plan(TableSet(batch_size=64, tables=tables), node(15))
    assert plan.tables["tag"].sharding_type == "data_parallel"
    copies = SAVE_COPY_SHARE * 1_000_000 * 65 * 4 + 2 * 10_000 * 65 * 4
    assert plan.memory[:, 1].sum() == sum(plan.ranks.ddr_bytes) + copies


def test_a_gpu_s_copy_is_in_host_memory() -> None:
    table_set = TableSet(batch_size=64, tables=(table("user", 100_000_000),))
    waiting = table_set.model_copy(update={"background_save": False})
    small = gpus(8).model_copy(update={"ddr_gib": 28.0, "ddr_reserve": 0.0})
    plan = make_plan(waiting, small)
    assert sum(plan.ranks.stored_bytes) == 100_000_000 * 65 * 4 and not any(plan.ranks.ddr_bytes)
    with pytest.raises(PlanError) as caught:
        make_plan(table_set, small, advise=False)  # the copy is 24.2 GiB, and 24 are free
    assert "ddr" in str(caught.value)
    assert not overfull(plan, small, background_save=False)
    (line,) = overfull(plan, small, background_save=True)
    assert line.startswith("ddr of rank ")


def test_a_plan_file_is_refused_where_the_copy_has_no_room(tmp_path: Path) -> None:
    def config(background: bool) -> Config:
        return Config(
            data=DataConfig(path=Path("unused"), batch_size=64),
            sharding=ShardingConfig(plan=tmp_path / "plan.json"),
            checkpoint=CheckpointConfig(background=background),
        )

    table_set = tables_of_run(config(False), SCHEMA)
    assert not table_set.background_save and tables_of_run(config(True), SCHEMA).background_save
    plan = make_plan(table_set, node(15))
    save_plan(plan, tmp_path / "plan.json")
    need = max(plan.ranks.ddr_bytes) * 2 / GIB
    tight = node(1.0 + 1.01 * need)  # two processes take 1 GiB
    assert get_plan(config(False), SCHEMA, tight) == plan
    with pytest.raises(PlanError) as caught:
        get_plan(config(True), SCHEMA, tight)
    assert "checkpoint.background=false" in str(caught.value)
    check_budget(plan, tight, background_save=False)


def test_a_plan_of_the_version_before_loads_and_its_copy_is_counted(tmp_path: Path) -> None:
    table_set = TableSet(batch_size=64, tables=(table("user", 1_000_000),))
    raw = make_plan(table_set, node(15)).model_dump(mode="json")
    del raw["made_for"]["tables"]["background_save"], raw["made_for"]["topology"]["worker_gib"]
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    plan = load_plan(str(tmp_path / "plan.json"))
    assert plan.memory[:, 1].sum() == sum(raw["ranks"]["ddr_bytes"]) + 250_000 * 65 * 4
    more = table_set.model_copy(update={"tables": (*table_set.tables, table("item", 1_000))})
    assert set(extend_plan(plan, more).tables) == {"user", "item"}


# ---- rows apart from buffers, HBM apart from host memory


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_bytes_of_tables_add_up(device: str) -> None:
    tables = (
        table("topic", 50_000, 128, 91.0, data_type="fp16"),
        table("wide", 700_000, 256, sharding_types=("column_wise",)),
        table("bag", 3_001, 16, 5.0, pooling="sum", sharding_types=("data_parallel",)),
        table("cold", 90_000, 32, compute_kernels=("fused_uvm_caching",), cache_share=0.3)
        if device == "cuda"
        else table("cold", 90_000, 32),
    )
    table_set = TableSet(batch_size=256, tables=tables)
    plan = make_plan(table_set, gpus(16) if device == "cuda" else node(60, 4))
    known = facts(plan)
    stored = {name: found["stored_bytes"] for name, found in known["bytes_by_table"].items()}
    assert stored["topic"] == 50_000 * (128 * 2 + 4)
    assert stored["bag"] == 3_001 * 17 * 4 * plan.made_for.topology.world_size
    parts = 256 // plan.tables["wide"].columns
    assert stored["wide"] == 700_000 * (256 + parts) * 4
    assert sum(stored.values()) == known["stored_bytes"] == sum(plan.ranks.stored_bytes)
    total = known["stored_bytes"] + known["cached_bytes"] + known["buffer_bytes"]
    assert total == pytest.approx(plan.ranks.memory.sum(), abs=len(plan.ranks.lookup_ms) * 8)
    share = {"cpu": SAVE_COPY_SHARE, "cuda": 1.0}[device]
    copies = share * (known["stored_bytes"] - stored["bag"]) + stored["bag"]
    assert known["save_copy_bytes"] == int(copies)
    # Input ids and output rows of a step, whatever the number of rows.
    buffers = known["bytes_by_table"]["topic"]["buffer_bytes_per_rank"]
    assert 256 * 91 * (8 + 128) < buffers < 3 * 256 * 91 * (8 + 128 * 4)
    lines = [line for line in describe(plan).splitlines() if line.startswith("│ ")]
    names = [line.split("│")[1].strip() for line in lines]
    assert names[0] == max(stored, key=stored.__getitem__)  # sorted by rows, not by buffers
    assert "12.4 MiB" in next(line for line in lines if "topic" in line)


def test_rows_outside_of_hbm_are_shown_and_not_recommended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(
        "batch_size: 1024\nbackground_save: false\ntables:\n"
        "- {name: user, num_embeddings: 300_000_000, embedding_dim: 128, pooling: none,\n"
        "   features: [{name: user}]}\n"
    )
    command = ["whatif", "--tables", str(path), "--topology", "h100x8"]
    main([*command, "--world-size", "1,4", "--json"])
    one, four = json.loads(capsys.readouterr().out)
    assert one["fits"] and not one["in_hbm"] and not one["recommended"]
    assert one["outside_hbm_bytes"] == 300_000_000 * 129 * 4 and one["outside_hbm_share"] == 1
    assert four["fits"] and four["in_hbm"] and four["recommended"]
    assert four["outside_hbm_bytes"] == 0
    assert four["samples_per_s"] == pytest.approx(4 * 1024 * 1000 / four["bottleneck_ms"])
    main([*command, "--world-size", "1", "--json"])
    (alone,) = json.loads(capsys.readouterr().out)
    assert alone["recommended"] and not alone["in_hbm"]  # and the table says so:
    main([*command, "--world-size", "1"])
    text = capsys.readouterr().out
    assert "outside HBM" in text and "(100%)" in text and "none keeps all rows in HBM" in text


def test_a_large_table_is_spread_where_that_costs_no_time() -> None:
    # Before: on one rank, 70 % full, with the other 15 empty, for 0.04 % of the step.
    busy = [table(f"t{i}", 100_000, 64, 50.0) for i in range(20)]
    table_set = TableSet(batch_size=1024, tables=(table("big", 800_000_000, 32), *busy))
    plan = make_plan(table_set, gpus(16))
    assert plan.fullest < 0.2
    assert len({shard.rank for shard in plan.shards("big") if shard.rows}) == 16


# ---- the memory of workers


def test_processes_are_reserved_for() -> None:
    assert node(16, 4).capacity[1] == (16 - 4 * 0.5) / 4 * GIB
    share = node(100, 4).model_copy(update={"reserve": 0.15})
    assert share.capacity[1] == pytest.approx(85 / 4 * GIB)
    with pytest.raises(PlanError) as caught:
        make_plan(TableSet(batch_size=1, tables=(table("a", 1),)), node(16, 64))
    assert "worker_gib" in str(caught.value)


def test_a_container_s_limit_is_the_machine_s_memory(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    machine = host_memory_bytes(tmp_path)  # no limits there
    assert machine > GIB
    write("proc/self/cgroup", "0::/pod/run\n")
    write("sys/fs/cgroup/pod/run/memory.max", "max\n")
    assert host_memory_bytes(tmp_path) == machine
    write("sys/fs/cgroup/pod/memory.max", f"{GIB // 2}\n")
    assert host_memory_bytes(tmp_path) == GIB // 2
    write("proc/self/cgroup", "4:cpu,memory:/run\n")
    write("sys/fs/cgroup/memory/run/memory.limit_in_bytes", f"{GIB // 4}\n")
    assert host_memory_bytes(tmp_path) == GIB // 4


def test_unlike_nodes_share_their_memory() -> None:
    # Two workers on one node and one on another are planned as three nodes of half the memory.
    topology = this_topology("cpu", 3, 2, bytes_per_worker=8 * GIB)
    assert (topology.num_nodes, topology.workers_per_node, topology.ddr_gib) == (3, 1, 8.0)
    whole = this_topology("cpu", 4, 2, bytes_per_worker=8 * GIB)
    assert (whole.num_nodes, whole.workers_per_node, whole.ddr_gib) == (2, 2, 16.0)


# ---- limits


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("mean_length: 2", "mean_length: 1.0e+308"), "mean_length"),
        (("mean_length: 2", "mean_length: .nan"), "mean_length"),
        (("mean_length: 2", "mean_length: -1"), "mean_length"),
        (("mean_length: 2", "mean_length: 1000000"), "batch_size 65536 x mean_length"),
        (("num_embeddings: 9", "num_embeddings: 1000000000000000000"), "num_embeddings"),
        (("num_embeddings: 9", "num_embeddings: true"), "num_embeddings"),
        (("num_embeddings: 9", "num_embeddings: 1.5"), "num_embeddings"),
        (("9, embedding_dim: 8", "100000000000000, embedding_dim: 1048576"), "embedding_dim"),
        (("batch_size: 65536", "batch_size: 2147483647"), "batch_size"),
        (("name: a", 'name: "a\\nb"'), "name"),
        (("pooling: none", "zipf: 1.0e+308"), "zipf"),
        (("pooling: none", "priority: 1.0e-308"), "priority"),
        (("pooling: none", "cache_share: 1.0e-308"), "cache_share"),
        (("batch_size: 65536", "batch_size: 1\nbackground_save: 2"), "background_save"),
    ],
)
def test_hostile_numbers_of_tables(tmp_path: Path, change: tuple[str, str], key: str) -> None:
    path = tmp_path / "tables.yaml"
    text = (
        "batch_size: 65536\ntables:\n- {name: a, num_embeddings: 9, embedding_dim: 8, "
        "pooling: none, features: [{name: f, mean_length: 2}]}\n"
    )
    path.write_text(text)
    assert load_table_set(str(path)).tables[0].name == "a"
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(PlanError) as caught:
        load_table_set(path)
    assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        ("workers_per_node: 8", "workers_per_node: 1000000000"),
        ("workers_per_node: 8", "workers_per_node: 1000\nnum_nodes: 65536"),
        ("hbm_gib: 632", "hbm_gib: 1.0e+308"),
        ("hbm_gib: 632", "hbm_gib: -1"),
        ("inter_node_gb_s: 50", "inter_node_gb_s: 1.0e-300"),
        ("name: h100x8", 'name: "a\\nb"'),
    ],
)
def test_hostile_numbers_of_topologies(tmp_path: Path, change: tuple[str, str]) -> None:
    good = (REPOSITORY / "sharding_plans/topologies/h100x8.yaml").read_text()
    assert change[0] in good
    (tmp_path / "mine.yaml").write_text(good.replace(*change))
    with pytest.raises(PlanError) as caught:
        load_topology(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


def test_worlds_have_a_limit() -> None:
    for make in (gpus, lambda size: this_topology("cpu", size, size)):
        with pytest.raises(PlanError, match=str(MAX_WORKERS)):
            make(10**9)
    table_set = TableSet(batch_size=64, tables=(table("a", 1_000, sharding_types=("row_wise",)),))
    plan = make_plan(table_set, gpus(8_192))
    assert len(plan.ranks.stored_bytes) == 8_192 and sum(plan.ranks.stored_bytes) == 260_000


# ---- many differences


def test_many_differences_are_counted_and_a_few_are_named(tmp_path: Path) -> None:
    tables = tuple(table(f"t{i:02}", 100 + i) for i in range(60))
    plan = make_plan(TableSet(batch_size=64, tables=tables), node(15))
    other = TableSet(batch_size=64, tables=tuple(table(f"t{i:02}", 99) for i in range(60)))
    with pytest.raises(PlanError) as caught:
        check_plan(plan, other, world_size=2)
    message = str(caught.value)
    assert "t00" in message and "t40" not in message and "60 in all" in message
    assert "infnet plan check" in message and len(message) < 1_000


def test_check_lists_all_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = tuple(table(f"t{i:02}", 100, pooling="sum") for i in range(12))
    one = table_set_of_kernels(tables)
    save_plan(make_plan(one, gpus(2)), str(tmp_path / "plan.json"))
    with pytest.raises(PlanError) as caught:
        main(["check", str(tmp_path / "plan.json"), "--topology", "cpu"])
    listed = capsys.readouterr().out
    assert "t00" in str(caught.value) and "t11" not in str(caught.value)
    assert all(f"table 't{i:02}'" in listed for i in range(12))


def table_set_of_kernels(tables: tuple[PlanTable, ...]) -> TableSet:
    """Tables in host memory, which CPU workers have no kernel for."""
    moved = [one.model_copy(update={"compute_kernels": ("fused_uvm",)}) for one in tables]
    return TableSet(batch_size=64, tables=tuple(moved))


def test_plan_type(tmp_path: Path) -> None:
    plan = make_plan(TableSet(batch_size=64, tables=(table("a", 9),)), node(15))
    path = tmp_path / "plan.json"
    save_plan(plan, str(path))
    assert isinstance(load_plan(str(path)), Plan) and load_plan(str(path)) == load_plan(path)
