"""Rows of a shard, bytes of a row with its optimizer state, and the memory tier that holds them."""

import math

import numpy as np
import torch

from infnet_dist.config.tables import SparseOptimizerName
from infnet_dist.planning.costs.options import OFFLOADED, ShardingOption
from infnet_dist.planning.tables import PlanTable
from infnet_dist.planning.topology import TIERS, Topology

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BY_ROWS = ("row_wise", "table_row_wise", "grid_shard")
SAVE_COPY_SHARE = 0.25  # of rows and state on CPUs: most bytes of copies for a background save


def row_bytes(
    table: PlanTable, optimizer: SparseOptimizerName, columns: int | None = None
) -> float:
    """Bytes of one row, or of `columns` of its floats, with the optimizer state (float32)."""
    width = columns or table.embedding_dim
    state = {
        "sgd": 0,
        "rowwise_adagrad": 1,
        "adagrad": width,
        "adam": 2 * width,
        "partial_rowwise_adam": width + 1,
        "lamb": 2 * width,
    }[optimizer]
    return width * DTYPES[table.data_type].itemsize + 4 * state


def block_rows(table: PlanTable, sharding_type: str, topology: Topology) -> int:
    """Rows of a whole block: all, or the share of one of the ranks that split them, rounded up."""
    parts = {
        "row_wise": topology.world_size,
        "table_row_wise": topology.workers_per_node,
        "grid_shard": topology.workers_per_node,
    }.get(sharding_type, 1)
    return math.ceil(table.num_embeddings / parts)


def rows_of_kinds(table: PlanTable, option: ShardingOption, topology: Topology) -> np.ndarray:
    """Rows of the three kinds of shards: a whole block, the rest, nothing; float64 [3]."""
    block = block_rows(table, option.sharding_type, topology)
    rest = table.num_embeddings % block if option.sharding_type in BY_ROWS else 0
    return np.array([block, rest, 0], np.float64)


def full_blocks(table: PlanTable, option: ShardingOption, topology: Topology) -> int:
    """The number of ranks that hold a whole block."""
    if option.sharding_type == "data_parallel":
        return topology.world_size
    return table.num_embeddings // block_rows(table, option.sharding_type, topology)


def home_tier(kernel: str, device: str) -> int:
    """Index in TIERS of the tier that holds the rows; their cache is always in HBM."""
    if kernel == "key_value":
        return TIERS.index("ssd")
    return TIERS.index("ddr") if device == "cpu" or kernel in OFFLOADED else TIERS.index("hbm")


def stored_bytes(
    table: PlanTable, option: ShardingOption, optimizer: SparseOptimizerName, topology: Topology
) -> np.ndarray:
    """Bytes of rows and optimizer state by kind of shard, float64 [3]."""
    return rows_of_kinds(table, option, topology) * row_bytes(table, optimizer, option.columns)


def save_copy_share(sharding_type: str, device: str) -> float:
    """The share of rows and state of which a background save holds copies in host memory.

    Rows are copied before they change (`checkpoint.snapshot`), but whole tables from GPUs, and
    data-parallel ones, whose changing rows aren't known before the update.
    """
    return 1.0 if device == "cuda" or sharding_type == "data_parallel" else SAVE_COPY_SHARE


def uncounted_bytes(
    table: PlanTable, option: ShardingOption, optimizer: SparseOptimizerName, topology: Topology
) -> np.ndarray:
    """Bytes that TorchRec's estimator doesn't count, by kind of shard and tier; float64 [3, 3].

    They are float32 optimizer state of fp16 rows, row-wise state of each column shard, and for a
    data-parallel table its gradient, its part of a DDP bucket, and two temporary tensors of its
    update in float32.
    """
    hbm, ddr = TIERS.index("hbm"), TIERS.index("ddr")
    uncounted = np.zeros((3, len(TIERS)))
    rows = rows_of_kinds(table, option, topology)
    weights = rows * option.columns * DTYPES[table.data_type].itemsize
    factors = {"sgd": 0, "rowwise_adagrad": 1 / table.embedding_dim, "adam": 2}
    counted = weights * factors.get(optimizer, 1)
    stored = stored_bytes(table, option, optimizer, topology)
    state = np.ceil(np.maximum(stored - weights - counted, 0.0))
    uncounted[:, home_tier(option.compute_kernel, topology.device)] += state
    if option.cache_share is not None:
        uncounted[:, hbm] += np.ceil(option.cache_share * state)
    if option.sharding_type == "data_parallel":
        dense = 2 * weights + 2 * 4 * rows * option.columns
        uncounted[:, hbm if topology.device == "cuda" else ddr] += dense
    return uncounted
