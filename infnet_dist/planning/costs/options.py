"""Sharding options that the planner considers for a table, and those it excludes and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infnet_dist.planning.tables import PlanTable
from infnet_dist.planning.topology import Topology

CACHE_SHARES = (0.05, 0.1, 0.2, 0.4)
OFFLOADED = ("fused_uvm", "fused_uvm_caching")


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
    unpooled = [table for table in tables if table.pooling == "none"]
    if unpooled:
        lines.append(
            f"{len(unpooled)} sequence tables: table_row_wise, table_column_wise and grid_shard "
            "aren't supported by TorchRec for an EmbeddingCollection; data_parallel isn't trained "
            "under an optimizer fused in backward"
        )
    if unpooled and topology.world_size == 1:
        lines.append("row_wise and column_wise where table_wise is allowed: one rank can't spread")
    if len(unpooled) < len(tables):
        lines.append(
            "table_column_wise, unless asked for: it costs what column_wise costs, but its shards "
            "must share a node"
        )
    lines.append("key_value, unless a table's compute_kernels asks")
    lines.append("virtual-table kernels: TorchRec's estimator counts no bytes for their rows")
    if topology.device == "cpu":
        lines.append("fused_uvm and fused_uvm_caching: a CPU has one memory")
    return lines


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
    supported = ["table_wise", "row_wise", "column_wise"]
    if table.pooling != "none":
        supported.append("data_parallel")
        if topology.device == "cuda":
            supported += ["table_row_wise", "grid_shard"]
            if table.sharding_types and "table_column_wise" in table.sharding_types:
                supported.append("table_column_wise")
    allowed = [name for name in supported if name in (table.sharding_types or supported)]
    if topology.world_size == 1 and table.pooling == "none" and "table_wise" in allowed:
        return ["table_wise"]  # one rank: other types would only regroup ids and rows
    return allowed


def _column_widths(table: PlanTable, sharding_type: str, topology: Topology) -> Iterator[int]:
    if sharding_type not in ("column_wise", "table_column_wise", "grid_shard"):
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
