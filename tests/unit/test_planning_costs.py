"""Our costs against TorchRec's enumerator, shard by shard."""

import numpy as np
import pytest
import torch
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.planner.types import ShardingOption as TorchRecOption
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import (
    DataType,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from infnet_dist.planning.costs.estimator import Costs, Estimator
from infnet_dist.planning.costs.options import ShardingOption, enumerate_options, excluded_options
from infnet_dist.planning.costs.popularity import ZipfStatistics, effective_rows, fit_zipf
from infnet_dist.planning.costs.torchrec_estimates import OPTIMIZERS
from infnet_dist.planning.costs.work import output_bytes
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import Topology

SEQUENCE_TYPES = ("table_wise", "column_wise", "row_wise")
TYPES = (*SEQUENCE_TYPES, "data_parallel", "table_row_wise", "table_column_wise", "grid_shard")
POOLED = {  # kind: pooling, weighted
    "sequence": ("none", False),
    "bag": ("sum", False),
    "mean bag": ("mean", False),
    "weighted bag": ("sum", True),
}
DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


def make_topology(num_nodes: int, device: str = "cuda") -> Topology:
    return Topology(
        name="test",
        device=device,
        num_nodes=num_nodes,
        workers_per_node=4,
        hbm_gib=320,
        ddr_gib=1000,
        hbm_gb_s=3000,
        ddr_gb_s=50,
        hbm_to_ddr_gb_s=40,
        intra_node_gb_s=400,
        inter_node_gb_s=40,
        backward_factor=2.5,
    )


def make_tables(
    kind: str = "bag", sharding_types: tuple[str, ...] | None = None
) -> tuple[PlanTable, ...]:
    """Rows that don't divide by the workers, one row, several features, both row types."""
    pooling, weighted = POOLED[kind]
    shapes = [
        (1, 64, "fp32", [1.0]),
        (5, 128, "fp16", [3.0, 0.5]),
        (1_000_003, 256, "fp32", [20.0]),
    ]
    shapes += [(40_000, 8, "fp32", [1.0, 1.0, 7.5]), (2_000_000_000, 96, "fp16", [2.0])]
    return tuple(
        PlanTable(
            name=f"t{i}",
            zipf=0.9 if i == 2 else None,
            num_embeddings=rows,
            embedding_dim=width,
            data_type=data_type,
            pooling=pooling,
            weighted=weighted,
            sharding_types=sharding_types,
            features=tuple(PlanFeature(name=f"t{i}_{j}", mean_length=x) for j, x in enumerate(xs)),
        )
        for i, (rows, width, data_type, xs) in enumerate(shapes)
    )


class AllTypes(EmbeddingBagCollectionSharder):
    """TorchRec's own list leaves out types that work on CPUs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(TYPES)


def cache_params(
    table: PlanTable, table_set: TableSet, topology: Topology, option: ShardingOption
) -> CacheParams | None:
    if option.cache_share is None:
        return None
    lookups = table_set.batch_size * topology.world_size * sum(table.lengths)
    stats = table.zipf and ZipfStatistics(
        exponent=table.zipf, num_embeddings=table.num_embeddings, lookups=lookups
    )
    return CacheParams(load_factor=option.cache_share, stats=stats)


def torchrec_options(
    table_set: TableSet, topology: Topology, name: str, option: ShardingOption
) -> TorchRecOption:
    """The one option that TorchRec's enumerator makes under constraints for `option` alone."""
    table = table_set.table(name)
    keys = [feature.name for feature in table.features]
    shape = dict(
        name=name,
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        data_type=DTYPES[table.data_type],
        feature_names=keys,
    )
    device = torch.device("meta")
    module: EmbeddingCollection | EmbeddingBagCollection
    if table.pooling == "none":
        module = EmbeddingCollection(tables=[EmbeddingConfig(**shape)], device=device)
    else:
        bags = [EmbeddingBagConfig(**shape, pooling=PoolingType[table.pooling.upper()])]
        module = EmbeddingBagCollection(tables=bags, is_weighted=table.weighted, device=device)
    optimizer = OPTIMIZERS[table.optimizer or table_set.optimizer]
    apply_optimizer_in_backward(optimizer, module.parameters(), {"lr": 0.1})
    constraints = ParameterConstraints(
        sharding_types=[option.sharding_type],
        compute_kernels=[option.compute_kernel],
        min_partition=option.columns,
        pooling_factors=list(table.lengths),
        cache_params=cache_params(table, table_set, topology, option),
    )
    enumerator = EmbeddingEnumerator(
        topology=topology.to_torchrec(),
        batch_size=table_set.batch_size,
        constraints={name: constraints},
    )
    sharders = [AllTypes(), EmbeddingCollectionSharder()]
    (option,) = enumerator.enumerate(torch.nn.Sequential(module), sharders)
    return option


def units_as_shards(costs: Costs, option: int, ranks: int) -> list[list[float]]:
    """Bytes of every shard of an option, unit by unit."""
    return [
        memory.tolist()
        for _ in range(int(costs.arrays.units[option]))
        for memory in costs.arrays.block_memory(option, ranks)
    ]


def uncounted(
    table: PlanTable, option: ShardingOption, optimizer: str, rows: int, columns: int, device: str
) -> list[float]:
    """HBM, DDR and SSD bytes of a shard that TorchRec's estimator doesn't count.

    fbgemm keeps optimizer state in float32, also beside fp16 rows, and one row-wise state for each
    column shard; a dense (data-parallel) table has a gradient, its place in a bucket of DDP, and
    two temporaries of its update.
    """
    weights = rows * columns * {"fp32": 4, "fp16": 2}[table.data_type]
    cells = rows * columns
    state, counted = {
        "sgd": (0, 0),
        "rowwise_adagrad": (4 * rows, weights / table.embedding_dim),
        "adagrad": (4 * cells, weights),
        "adam": (8 * cells, 2 * weights),
        "partial_rowwise_adam": (4 * cells + 4 * rows, weights),
        "lamb": (8 * cells, weights),
    }[optimizer]
    missing = state - counted
    if option.compute_kernel == "dense":
        missing += 2 * weights + 2 * 4 * cells
    if device == "cpu":
        return [0, missing, 0]
    if option.compute_kernel == "fused_uvm_caching":
        return [option.cache_share * missing, missing, 0]
    return [missing, 0, 0] if option.compute_kernel in ("fused", "dense") else [0, missing, 0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_background_save_takes_copies_of_rows_and_state_in_host_memory(device: str) -> None:
    topology = make_topology(1, device)
    table_set = TableSet(batch_size=96, tables=make_tables("sequence", SEQUENCE_TYPES))
    waiting = table_set.model_copy(update={"background_save": False})
    with_copy = Estimator(table_set, topology).costs(offload=device == "cuda")
    without = Estimator(waiting, topology).costs(offload=device == "cuda")
    assert with_copy.sharding_options == without.sharding_options
    for i, option in enumerate(with_copy.sharding_options):
        table = table_set.tables[with_copy.arrays.table[i]]
        ranks = 4 if option.sharding_type == "row_wise" else 1
        more = np.array(units_as_shards(with_copy, i, ranks)) - units_as_shards(without, i, ranks)
        shards = table.embedding_dim // option.columns
        width = table.embedding_dim * {"fp32": 4, "fp16": 2}[table.data_type]
        share = {"cpu": 0.25, "cuda": 1.0}[device]
        stored = table.num_embeddings * (width + 4 * shards)
        assert more[:, 1].sum() == share * stored, (table, option)
        assert not more[:, [0, 2]].any()


@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.parametrize(
    ("kind", "optimizer", "device"),
    [
        *(("bag", name, "cuda") for name in OPTIMIZERS),
        *(("sequence", name, "cuda") for name in ("rowwise_adagrad", "adam", "sgd")),
        ("mean bag", "rowwise_adagrad", "cuda"),
        ("weighted bag", "rowwise_adagrad", "cuda"),
        *((kind, "adagrad", "cpu") for kind in ("sequence", "bag", "weighted bag")),
    ],
)
def test_every_option_costs_torchrecs_estimate_and_the_uncounted_bytes(
    num_nodes: int, kind: str, optimizer: str, device: str
) -> None:
    topology = make_topology(num_nodes, device)
    types = {"sequence": SEQUENCE_TYPES, "mean bag": TYPES[:-1]}.get(kind, TYPES)
    if optimizer in ("adam", "partial_rowwise_adam", "lamb"):
        types = tuple(name for name in types if name != "data_parallel")
    tables = make_tables(kind, types)
    tables = (*tables[:-1], tables[-1].model_copy(update={"optimizer": optimizer}))
    table_set = TableSet(batch_size=96, background_save=False, tables=tables)
    costs = Estimator(table_set, topology).costs(offload=device == "cuda")
    several_nodes = {"grid_shard", *(["table_row_wise"] if device == "cpu" else [])}
    given = {option.sharding_type for option in costs.sharding_options}
    assert given == set(types) - (several_nodes if num_nodes == 1 else set())
    assert {option.compute_kernel for option in costs.sharding_options} >= (
        {"fused", "fused_uvm", "fused_uvm_caching"} if device == "cuda" else {"fused"}
    )
    ranks_per_unit = {0: 1, 1: topology.workers_per_node, 2: topology.world_size}
    for i, option in enumerate(costs.sharding_options):
        table = table_set.tables[costs.arrays.table[i]]
        torchrec = torchrec_options(table_set, topology, table.name, option)
        ranks = ranks_per_unit[int(costs.arrays.place[i])]
        expected = [
            np.array([shard.storage.hbm, shard.storage.ddr, shard.storage.ssd])
            + uncounted(table, option, table_set.optimizer_of(table), *shard.size, device)
            for shard in torchrec.shards
        ]
        np.testing.assert_allclose(units_as_shards(costs, i, ranks), expected, rtol=0, atol=3)
        times = np.array([shard.perf.total for shard in torchrec.shards])
        assert times == pytest.approx(costs.arrays.time[i], rel=1e-12), (table, option)
        comms = [shard.perf.fwd_comms + shard.perf.bwd_comms for shard in torchrec.shards]
        assert comms == pytest.approx([costs.comms_ms[i]] * len(comms), abs=1e-12)
        assert costs.lookup_ms[i] + costs.comms_ms[i] == pytest.approx(costs.arrays.time[i])


@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.parametrize("kind", ["sequence", "bag", "weighted bag"])
def test_bytes_of_outputs_are_those_of_torchrec_s_times(kind: str, num_nodes: int) -> None:
    """With links of equal speed and an endless HBM, times of communication are bytes."""
    topology = make_topology(num_nodes).model_copy(
        update={"hbm_gb_s": 1e6, "intra_node_gb_s": 1e-2, "inter_node_gb_s": 1e-2}
    )
    bytes_per_ms = 1e-2 * 1e9 / 1e3
    types = SEQUENCE_TYPES if kind == "sequence" else TYPES
    table = make_tables(kind, types)[2].model_copy(update={"num_embeddings": 100_003})
    table_set = TableSet(batch_size=96, tables=(table,))
    costs = Estimator(table_set, topology).costs(offload=False)
    ranks_per_unit = {0: 1, 1: topology.workers_per_node, 2: topology.world_size}
    for i, option in enumerate(costs.sharding_options):
        ranks = int(costs.arrays.units[i]) * ranks_per_unit[int(costs.arrays.place[i])]
        expected = costs.comms_ms[i] * bytes_per_ms * ranks
        if option.sharding_type == "data_parallel":
            # All links of a node at once; between nodes, a ring sends it three times.
            expected *= topology.workers_per_node / {1: 1, 3: 3}[num_nodes]
        found = output_bytes(table, option, topology, table_set.batch_size)
        assert found == pytest.approx(expected, rel=1e-3), option


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.3])
@pytest.mark.parametrize("rows", [1, 50, 3_000, 20_000])
def test_zipf_statistics_equal_sums_over_all_rows(exponent: float, rows: int) -> None:
    lookups = 2_000
    found = ZipfStatistics(exponent=exponent, num_embeddings=rows, lookups=lookups)
    each = np.arange(1, rows + 1, dtype=float) ** -exponent
    each /= each.sum()
    distinct = (1 - (1 - each) ** lookups).sum()
    assert found.expected_lookups == pytest.approx(distinct, rel=0.01)
    entropy = -(each * np.log(each)).sum()
    assert effective_rows(exponent, rows) == pytest.approx(np.exp(entropy), rel=0.01)
    assert found.expected_miss_rate(0.0) == pytest.approx(1.0)
    assert found.expected_miss_rate(1.0) == pytest.approx(0.0)
    for share in (0.02, 0.1, 0.5):
        kept = int(share * rows)
        if kept:
            expected = 1 - each[:kept].sum()
            assert found.expected_miss_rate(kept / rows) == pytest.approx(expected, abs=0.005)


def test_a_skewed_table_is_cheaper_to_cache() -> None:
    topology = make_topology(1)
    table = make_tables()[2].model_copy(update={"compute_kernels": ("fused_uvm_caching",)})
    times = []
    for zipf in (0.0, 0.6, 1.2):
        tables = (table.model_copy(update={"zipf": zipf}),)
        table_set = TableSet(batch_size=4096, tables=tables)
        costs = Estimator(table_set, topology).costs(offload=True)
        times.append(costs.arrays.time.min())
    assert times[0] > times[1] > times[2]


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.1])
@pytest.mark.parametrize("rows", [2_000, 300_000])
def test_the_exponent_is_found_from_a_sample(exponent: float, rows: int) -> None:
    weight = np.arange(1, rows + 1) ** -exponent
    ids = np.random.default_rng(0).choice(rows, min(rows, 60_000), p=weight / weight.sum())
    found = fit_zipf(num_embeddings=rows, lookups=len(ids), distinct=len(np.unique(ids)))
    assert found == pytest.approx(exponent, abs=0.15)
    assert fit_zipf(num_embeddings=rows, lookups=999, distinct=1) is None


@pytest.mark.parametrize(
    ("workers", "expected"), [(1, {"table_wise"}), (2, {"table_wise", "row_wise"})]
)
def test_one_rank_takes_table_wise_alone(workers: int, expected: set[str]) -> None:
    topology = make_topology(1, device="cpu").model_copy(update={"workers_per_node": workers})
    table = make_tables("sequence")[2].model_copy(
        update={"sharding_types": ("table_wise", "row_wise")}
    )
    assert {
        option.sharding_type for option in enumerate_options(table, topology, offload=False)
    } == expected
    row_wise = table.model_copy(update={"sharding_types": ("row_wise",)})
    assert {w.sharding_type for w in enumerate_options(row_wise, topology, offload=False)} == {
        "row_wise"
    }
    assert any("can't spread" in line for line in excluded_options([table], topology)) == (
        workers == 1
    )


def test_one_rank_keeps_the_dense_kernel_of_pooled_tables() -> None:
    topology = make_topology(1).model_copy(update={"workers_per_node": 1})
    table = make_tables("bag")[0]
    table = table.model_copy(update={"compute_kernels": ("dense",), "optimizer": "sgd"})
    assert [w.sharding_type for w in enumerate_options(table, topology, offload=False)] == [
        "data_parallel"
    ]
