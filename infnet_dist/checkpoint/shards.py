"""The state of a sharded model as named local shards: this rank's parts of all tensors.

Their names are in `tensor_names`. Learning rates aren't part of the state: they follow from the
config and the step. Nor are columns that only the kernel needs.

If the dense parameters have an average, `model.<parameter>` is the average, which is served, and
the parameter that is trained is a state of the average.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from infnet_dist.lookups import table_of

if TYPE_CHECKING:  # imports TorchRec, which the command doesn't need
    from infnet_dist.sharding.build import ShardedModel


@dataclass(frozen=True)
class LocalShard:
    """This rank's rectangle of a tensor.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        offsets: of the rectangle in the tensor.
        tensor: the rectangle; it shares memory with the model.
        replicated: whether every rank holds the same values.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: torch.Tensor
    replicated: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the rectangle."""
        return math.prod(self.tensor.shape) * self.tensor.itemsize

    def narrow(self, start: int, stop: int) -> "LocalShard":
        """Rows [start, stop) of the rectangle."""
        offsets = (self.offsets[0] + start, *self.offsets[1:])
        return replace(self, offsets=offsets, tensor=self.tensor[start:stop])


class ModelState:
    """The state of a model and its optimizers on this rank.

    Args:
        sharded: the model.
        with_optimizer: whether the optimizers' state is part of it.
    """

    def __init__(self, sharded: "ShardedModel", *, with_optimizer: bool = True) -> None:
        self._sharded = sharded
        self._model: dict[str, Any] = sharded.model.state_dict()  # flushes the tables' caches
        self._optimizer = sharded.optimizer.state_dict() if with_optimizer else None
        tables = sharded.lookups.tables
        self._widths = {table.name: table.settings.embedding_dim for table in tables}

    def shards(self) -> list[LocalShard]:
        """This rank's shards, in an order that all ranks share for those that are replicated."""
        return list(self._shards())

    def shards_to_save(self, rank: int, world_size: int) -> list[LocalShard]:
        """The shards that this rank saves: its own, and its part of the replicated ones."""
        shards = self.shards()
        own = [shard for shard in shards if not shard.replicated]
        return own + [shard for shard in shards if shard.replicated][rank::world_size]

    def load_state_dict(self) -> None:
        """Load the state into model and optimizers, once its shards are filled."""
        self._sharded.model.load_state_dict(self._model)  # drops the tables' caches
        if self._optimizer is not None:
            self._sharded.optimizer.load_state_dict(self._optimizer)

    def _shards(self) -> Iterator[LocalShard]:
        average = self._sharded.average if self._optimizer else None
        averages = average.params if average else {}
        for parameter, value in self._model.items():
            if table := table_of(parameter):
                yield from self._of_table(f"model.tables.{table}.weight", value, table)
            else:
                yield from _of(f"model.{parameter}", averages.get(parameter, value))
        for parameter, states in (self._optimizer or {"state": {}})["state"].items():
            for key, value in states.items():
                if table := table_of(parameter):
                    name = f"optimizer.tables.{table}.{key.removeprefix(f'{table}.')}"
                    yield from self._of_table(name, value, table)
                elif key == "average":
                    trained = self._model[parameter.removeprefix("average.")]
                    yield from _of(f"optimizer.{parameter}.trained", trained)
                else:
                    yield from _of(f"optimizer.{parameter}.{key}", value)

    def _of_table(
        self, name: str, value: torch.Tensor | ShardedTensor, table: str
    ) -> Iterator[LocalShard]:
        """Rows, or a state of them, without the columns that only the kernel needs."""
        width = self._widths[table]
        for shard in _of(name, value):
            if len(shard.shape) == 2 and shard.shape[1] != width:
                kept = shard.tensor[:, : width - shard.offsets[1]]
                shard = replace(shard, shape=(shard.shape[0], width), tensor=kept)
            yield shard


def _of(name: str, value: torch.Tensor | ShardedTensor) -> Iterator[LocalShard]:
    if not isinstance(value, ShardedTensor):
        shape = tuple(value.shape)
        yield LocalShard(name, shape, (0,) * len(shape), value.detach(), replicated=True)
        return
    shape = tuple(value.size())
    for shard in value.local_shards():
        offsets = tuple(shard.metadata.shard_offsets)
        yield LocalShard(name, shape, offsets, shard.tensor.detach(), replicated=False)
