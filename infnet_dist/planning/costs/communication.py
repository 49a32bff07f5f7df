"""Bytes of rows and gradients that the workers exchange in a step."""

from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.sizes import DTYPES
from infnet_dist.planning.tables import PlanTable
from infnet_dist.planning.topology import Topology

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
