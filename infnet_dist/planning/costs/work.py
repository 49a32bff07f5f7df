"""The work of a table in a step: ids, rows, and the bytes that the workers exchange.

Measured costs are multiplied by the work of a shard on its rank.
"""

from typing import NamedTuple

import numpy as np

from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.popularity import zipf_statistics
from infnet_dist.planning.costs.sizes import DTYPES
from infnet_dist.planning.tables import PlanTable
from infnet_dist.planning.topology import Topology

# Otherwise 5: sizes, lengths, ids, outputs, gradients. Types of a node exchange outputs twice.
_COLLECTIVES = {"data_parallel": 1, "table_row_wise": 7, "grid_shard": 7}
_ID_BYTES = 8
_FLOAT = 4  # rows and sums of rows are sent in float32, whatever the table's type


def output_bytes(
    table: PlanTable, option: ShardingOption, topology: Topology, batch_size: int
) -> float:
    """Bytes that all ranks together give to the exchange of outputs in a step.

    Forward, an all-to-all sends each row of a sequence, or each sum of a bag, to the rank that
    asked for it. Ranks that share the rows of a pooled table reduce sums of their own: row_wise
    each rank has one for every bag of the global batch, table_row_wise and grid_shard each rank of
    the node, and a further all-to-all exchanges sums between nodes. Backward sends the gradients of
    the same. Under data_parallel all ranks reduce the gradient of the whole table.

    Args:
        table: the table.
        option: how it is sharded.
        topology: the workers.
        batch_size: rows per worker and step.
    """
    ranks = topology.world_size
    if option.sharding_type == "data_parallel":
        itemsize = DTYPES[table.data_type].itemsize
        return float(ranks * table.num_embeddings * table.embedding_dim * itemsize)
    outputs = sum(table.lengths) if table.pooling == "none" else len(table.features)
    copies = 1
    if table.pooling != "none" and option.sharding_type == "row_wise":
        copies = ranks
    elif option.sharding_type in ("table_row_wise", "grid_shard"):
        copies = topology.workers_per_node + (topology.num_nodes > 1)
    return 2.0 * ranks * batch_size * outputs * table.embedding_dim * _FLOAT * copies


def collectives_of(sharding_type: str) -> int:
    """Collectives of an exchange, forward and backward."""
    return _COLLECTIVES.get(sharding_type, 5)


class Work(NamedTuple):
    """Quantities of one unit of an option on each of its ranks, in a step.

    Attributes:
        features: those that look rows up.
        ids: ids looked up.
        id_bytes: bytes of their rows.
        rows: expected number of distinct rows among them.
        row_bytes: bytes of those.
        output_bytes: float32 bytes that the rank gives to the exchange, forward; backward it
            receives as many. data_parallel: bytes of the gradient, which is reduced.
    """

    features: float
    ids: float
    id_bytes: float
    rows: float
    row_bytes: float
    output_bytes: float

    @property
    def row_quantities(self) -> np.ndarray:
        """What `RowCosts.coefficients` are per unit of; float64 [5]."""
        return np.array([self.features, self.ids, self.id_bytes, self.rows, self.row_bytes])

    @property
    def exchange_quantities(self) -> np.ndarray:
        """What `ExchangeCosts.coefficients` are per unit of; float64 [3]."""
        return np.array([self.features, self.ids, self.output_bytes])

    def link_ms(self, sharding_type: str, topology: Topology) -> float:
        """Milliseconds of its bytes on the links between workers, forward and backward."""
        if sharding_type == "data_parallel":
            return topology.all_reduce_ms(self.output_bytes)
        ranks, local = topology.world_size, topology.workers_per_node
        sent = 2 * self.output_bytes + _ID_BYTES * self.ids
        within, between = (local - 1) / ranks, (ranks - local) / ranks  # shares of the bytes
        seconds_per_gb = within / topology.intra_node_gb_s + between / topology.inter_node_gb_s
        return sent * seconds_per_gb / 1e6


def work_of(table: PlanTable, option: ShardingOption, topology: Topology, batch_size: int) -> Work:
    """The work of one unit on each of its ranks.

    Args:
        table: the table.
        option: how it is sharded.
        topology: the workers.
        batch_size: rows per worker and step.
    """
    ranks = topology.world_size
    parts = {  # ranks that split a table's rows, or its batch
        "row_wise": ranks,
        "data_parallel": ranks,
        "table_row_wise": topology.workers_per_node,
        "grid_shard": topology.workers_per_node,
    }.get(option.sharding_type, 1)
    all_ids = ranks * batch_size * sum(table.lengths)
    ids = all_ids / parts
    if option.sharding_type == "data_parallel":  # any of the rows
        rows = _distinct(table, ids)
    else:
        rows = _distinct(table, all_ids) / parts
    row = option.columns * DTYPES[table.data_type].itemsize
    share = option.columns / table.embedding_dim
    outputs = output_bytes(table, option, topology, batch_size) * share / parts
    if option.sharding_type != "data_parallel":
        outputs /= 2  # it counts both directions
    return Work(len(table.features), ids, ids * row, rows, rows * row, outputs)


def _distinct(table: PlanTable, ids: float) -> float:
    """Expected number of distinct rows among `ids` lookups; uniform ids if nothing is known."""
    return zipf_statistics(table.zipf or 0.0, table.num_embeddings, ids).expected_lookups
