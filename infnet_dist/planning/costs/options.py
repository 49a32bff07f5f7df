"""Sharding options that the planner considers for a table, and those it excludes and why."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infnet_dist.config.tables import ShardingTypeName
from infnet_dist.planning.tables import PlanTable
from infnet_dist.planning.topology import Topology

CACHE_SHARES = (0.05, 0.1, 0.2, 0.4)
OFFLOADED = ("fused_uvm", "fused_uvm_caching")
SEQUENCE_TYPES = ("table_wise", "row_wise", "column_wise")  # of an EmbeddingCollection
# Split tables by columns. They are considered only where a table's sharding_types asks: each column
# shard has a row-wise optimizer's state of its own, so results differ from those of an unsharded
# table, and the state can't be resharded to another type.
COLUMN_TYPES = ("column_wise", "table_column_wise", "grid_shard")
_ALL_TYPES: tuple[ShardingTypeName, ...] = (
    *("table_wise", "row_wise", "column_wise", "data_parallel"),
    *("table_row_wise", "grid_shard", "table_column_wise"),
)
_DENSE_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd")  # train data-parallel tables


@dataclass(frozen=True)
class ShardingOption:
    """How a table is sharded, without the places of its shards.

    Attributes:
        sharding_type: TorchRec's sharding type.
        compute_kernel: TorchRec's compute kernel.
        columns: width of a shard in floats; the table's width unless it is split by columns.
        cache_share: share of the rows cached in HBM; only for fused_uvm_caching.
    """

    sharding_type: str
    compute_kernel: str
    columns: int
    cache_share: float | None = None


def excluded_options(tables: Sequence[PlanTable], topology: Topology) -> list[str]:
    """One line for each option that isn't considered for these tables, with the reason."""
    lines = []
    sequences = [table for table in tables if table.pooling == "none"]
    if sequences:
        lines.append(
            f"{len(sequences)} sequence tables: table_row_wise, table_column_wise and grid_shard "
            "aren't supported by TorchRec for an EmbeddingCollection; data_parallel isn't trained "
            "under an optimizer fused in backward"
        )
    if topology.world_size == 1:
        lines.append("other types where table_wise is allowed: one rank can't spread")
    lines.append(
        "column_wise, table_column_wise and grid_shard, unless a table's sharding_types asks: a "
        "row-wise optimizer has a state for each column shard, so results differ from an unsharded "
        "table's and the state can't be resharded"
    )
    if len(sequences) < len(tables):
        if any(table.pooling == "mean" for table in tables):
            lines.append("grid_shard for tables with pooling mean: TorchRec's means are wrong")
        if any(t.data_type == "fp16" for t in tables if t.pooling != "none"):
            lines.append(
                "data_parallel for fp16 tables, unless asked for: it sums and applies gradients in "
                "fp16"
            )
        if topology.num_nodes == 1:
            lines.append("table_row_wise, unless asked for: on one node it is row_wise")
    lines.append("key_value, unless a table's compute_kernels asks")
    lines.append("virtual-table kernels: TorchRec's estimator counts no bytes for their rows")
    if topology.device == "cpu":
        lines.append("fused_uvm and fused_uvm_caching: a CPU has one memory")
    return lines


def unsupported(table: PlanTable, sharding_type: str) -> str | None:
    """Why no workers can have the table, given with its optimizer, under a sharding type."""
    if table.pooling == "none" and sharding_type not in SEQUENCE_TYPES:
        return f"a table that a sequence reads can be {_one_of(SEQUENCE_TYPES)}"
    if table.pooling == "mean" and sharding_type == "grid_shard":
        return "TorchRec's means are wrong under grid_shard"
    if sharding_type == "data_parallel" and table.optimizer not in _DENSE_OPTIMIZERS:
        return f"{table.optimizer} can't train it then; {_one_of(_DENSE_OPTIMIZERS)} can"
    return None


def unsupported_on(table: PlanTable, sharding_type: str, topology: Topology) -> str | None:
    """Why these workers can't have the table, given with its optimizer, under a type."""
    if sharding_type == "grid_shard" and topology.num_nodes == 1:
        return f"grid_shard needs several nodes, {topology.name} has 1 here"
    if sharding_type == "table_row_wise" and topology.device == "cpu" and topology.num_nodes == 1:
        return f"table_row_wise on CPUs needs several nodes, {topology.name} has 1 here"
    if topology.device == "cpu" and _leaves_a_rank_empty(table, sharding_type, topology):
        return (
            f"its {table.num_embeddings} rows leave a worker without any, where the kernel of a "
            "CPU fails"
        )
    return unsupported(table, sharding_type)


def _leaves_a_rank_empty(table: PlanTable, sharding_type: str, topology: Topology) -> bool:
    """Whether blocks of equal size, rounded up, end before the last of the ranks."""
    ranks = {
        "row_wise": topology.world_size,
        "table_row_wise": topology.workers_per_node,
        "grid_shard": topology.workers_per_node,
    }.get(sharding_type, 1)
    return (ranks - 1) * math.ceil(table.num_embeddings / ranks) >= table.num_embeddings


def enumerate_options(
    table: PlanTable, topology: Topology, *, offload: bool
) -> Iterator[ShardingOption]:
    """The options to consider; `offload` adds kernels that keep rows outside of HBM."""
    for sharding_type in _sharding_types(table, topology):
        for columns in _column_widths(table, sharding_type, topology):
            for kernel in _kernels(table, sharding_type, topology, offload):
                shares: tuple[float | None, ...] = (None,)
                if kernel == "fused_uvm_caching":
                    shares = (table.cache_share,) if table.cache_share else CACHE_SHARES
                for share in shares:
                    yield ShardingOption(sharding_type, kernel, columns, share)


def _sharding_types(table: PlanTable, topology: Topology) -> list[str]:
    considered = table.sharding_types or _default_types(table, topology)
    allowed = [t for t in considered if unsupported_on(table, t, topology) is None]
    only_dense = table.compute_kernels == ("dense",)
    if topology.world_size == 1 and "table_wise" in allowed and not only_dense:
        return ["table_wise"]  # one rank: other types would only regroup ids and rows
    return [name for name in _ALL_TYPES if name in allowed]


def _default_types(table: PlanTable, topology: Topology) -> tuple[ShardingTypeName, ...]:
    """The types under which a table gives the results of an unsharded one."""
    if table.pooling == "none":
        return ("table_wise", "row_wise")
    types: tuple[ShardingTypeName, ...] = ("table_wise", "row_wise")
    if table.data_type == "fp32":
        types += ("data_parallel",)
    return (*types, "table_row_wise") if topology.num_nodes > 1 else types


def _column_widths(table: PlanTable, sharding_type: str, topology: Topology) -> Iterator[int]:
    if sharding_type not in COLUMN_TYPES:
        yield table.embedding_dim
        return
    most = {
        "column_wise": topology.world_size,
        "table_column_wise": topology.workers_per_node,
        "grid_shard": topology.num_nodes,
    }[sharding_type]
    for parts in range(2, table.embedding_dim // table.min_column_width + 1):
        width, rest = divmod(table.embedding_dim, parts)
        if rest == 0 and width % 4 == 0 and parts <= most:
            yield width


def _kernels(table: PlanTable, sharding_type: str, topology: Topology, offload: bool) -> list[str]:
    if sharding_type == "data_parallel":
        kernels = ["dense"]
    elif topology.device == "cpu":
        kernels = ["fused"]
    else:
        asked = table.compute_kernels or ()
        kernels = ["fused", *(OFFLOADED if offload or asked else ())]
        kernels += ["key_value"] if "key_value" in asked and topology.ssd_gib else []
    if table.compute_kernels is None:
        return kernels
    return [kernel for kernel in kernels if kernel in table.compute_kernels]


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
