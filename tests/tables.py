"""Whole tables of a sharded model, without the columns that only the kernel needs."""

import torch

from infnet_dist.checkpoint.shards import ModelState
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.sharding.build import ShardedModel


def whole_tables(sharded: ShardedModel, context: WorkerContext) -> dict[str, torch.Tensor]:
    """The rows of every table, the same on all ranks."""
    shards = ModelState(sharded, with_optimizer=False).shards()
    mine = [
        (match[1], shard.shape, shard.offsets, shard.tensor.clone())
        for shard in shards
        if (match := TABLE.fullmatch(shard.name))
    ]
    tables: dict[str, torch.Tensor] = {}
    for name, shape, (row, column), part in (one for rank in context.gather(mine) for one in rank):
        table = tables.setdefault(name, torch.full(shape, torch.nan, dtype=part.dtype))
        table[row : row + part.shape[0], column : column + part.shape[1]] = part
    return tables
