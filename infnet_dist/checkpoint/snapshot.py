"""The state that a checkpoint is written from, in blocks of rows.

`LiveState` is the memory of the model, for a save that training waits for. `Snapshot` is the state
as of the step of the save, although training changes the model while the blocks are written: rows
are copied before a step changes them, unless they are written by then.

1. A kernel's lookup names the rows that its backward pass may change: no other row changes. Before
   the lookup, those that are neither copied nor written are copied (`_before_lookup`).
2. A block is read from the model's memory first; then its rows that have a copy by now are replaced
   by it (`read`). A row may change while the block is read, but then it was copied before that.
3. Copies are dropped once the file that holds their rows is complete (`release`), since a failed
   file is written again. If they would take more than their limit, the step waits for that.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from threading import Condition
from typing import Any, NamedTuple

import torch
from torch import nn

from infnet_dist.checkpoint.files import rows_of
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.planning.costs.sizes import SAVE_COPY_SHARE

_PART_BYTES = 2**30
_LEAST_LIMIT_BYTES = 2**26
ShardKey = tuple[str, tuple[int, ...]]


def shard_key(shard: LocalShard) -> ShardKey:
    """Identifies a shard among those of a rank."""
    return shard.name, shard.offsets


class LiveState:
    """The state as it is now; it must not change until it is written.

    Args:
        shards: this rank's.

    Attributes:
        waited_s: seconds that steps took for copies of rows, or waited to be allowed to make them.
    """

    waited_s = 0.0

    def __init__(self, shards: Sequence[LocalShard]) -> None:
        self._shards = shards

    def parts(self) -> list[list[LocalShard]]:
        """The shards to write; those of a part belong in the same file."""
        return [[shard] for shard in self._shards]

    def read(self, shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a shard of `parts`; a scalar is one row."""
        return rows_of(shard, start, stop)

    def release(self, shards: Iterable[LocalShard]) -> None:
        """Told when the file of some shards is complete: they aren't read again."""

    def close(self) -> None:
        """Told when all is written, or given up."""


class KernelTable(NamedTuple):
    """A table of an fbgemm kernel, whose lookups name the rows that may change.

    Attributes:
        kernel: a `SplitTableBatchedEmbeddingBagsCodegen`.
        number: of the table in the kernel.
        shards: its rows and their optimizer state, each [rows] or [rows, columns].
    """

    kernel: nn.Module
    number: int
    shards: list[LocalShard]


def kernel_tables(
    shards: Iterable[LocalShard], kernels: Iterable[Any], *, devices: Sequence[str] = ("cpu",)
) -> tuple[list[KernelTable], list[LocalShard]]:
    """The tables of these kernels on `devices`, and all shards that don't belong to one."""
    by_address: dict[int, KernelTable] = {}
    for kernel in kernels:
        weights = kernel.split_embedding_weights()
        states = kernel.split_optimizer_states() or [[]] * len(weights)  # none of SGD
        for number, (weight, of_weight) in enumerate(zip(weights, states, strict=True)):
            table = KernelTable(kernel, number, [])
            for tensor in (weight, *of_weight):
                if tensor.device.type in devices and tensor.numel() and len(tensor) == len(weight):
                    by_address[tensor.data_ptr()] = table
    others: list[LocalShard] = []
    for shard in shards:
        found = by_address.get(shard.tensor.data_ptr()) if shard.nbytes else None
        (found.shards if found else others).append(shard)
    tables = {id(table): table for table in by_address.values() if table.shards}
    return list(tables.values()), others


class Snapshot(LiveState):
    """The state as of the moment when it is made, while lookups and their updates continue.

    A lookup before that moment must have had its backward pass by then.

    Args:
        tables: those whose changing rows are known.
        others: all other shards, in memory that doesn't change.

    Attributes:
        limit_bytes: of copies, a share of the tables' bytes. Only the byte per row that says
            whether it needs a copy is taken in any case.
        most_bytes: of copies, and of these bytes, that were held at once.
    """

    def __init__(self, tables: Sequence[KernelTable], others: Sequence[LocalShard]) -> None:
        super().__init__(others)
        stored = sum(shard.nbytes for table in tables for shard in table.shards)
        self.limit_bytes = max(_LEAST_LIMIT_BYTES, int(SAVE_COPY_SHARE * stored))
        self._changed = Condition()
        self._closed = False
        self._rows = {(id(table.kernel), table.number): _Rows(table.shards) for table in tables}
        self._places = {
            shard_key(shard): (part, number)
            for rows in self._rows.values()
            for part in rows.parts
            for number, shard in enumerate(part.shards)
        }
        self._held_bytes = sum(rows.safe.nbytes for rows in self._rows.values())
        self.most_bytes = self._held_bytes
        kernels = {id(table.kernel): table.kernel for table in tables}
        self._hooks = [
            kernel.register_forward_pre_hook(self._before_lookup, with_kwargs=True)
            for kernel in kernels.values()
        ]

    def parts(self) -> list[list[LocalShard]]:
        """As in the base class."""
        found = [part.shards for rows in self._rows.values() for part in rows.parts]
        return found + super().parts()

    def read(self, shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        """As in the base class; the values as of the snapshot, in memory of their own."""
        values = super().read(shard, start, stop)
        if (place := self._places.get(shard_key(shard))) is None:
            return values
        part, number = place
        values = values.clone(memory_format=torch.contiguous_format)
        with self._changed:  # only now: a row that changed until now has a copy
            copied, copies = part.copied(number)
        inside = ((copied >= start) & (copied < stop)).nonzero().squeeze(1)
        values[copied[inside] - start] = copies[inside]
        return values

    def release(self, shards: Iterable[LocalShard]) -> None:
        """As in the base class; drops the copies of these shards' rows."""
        with self._changed:
            for shard in shards:
                if place := self._places.get(shard_key(shard)):
                    self._held_bytes -= place[0].release()
            self._changed.notify_all()

    def close(self) -> None:
        """As in the base class; drops all copies."""
        with self._changed:
            self._closed = True
            self._rows, self._places = {}, {}
            self._changed.notify_all()

    def detach(self) -> None:
        """Remove the hooks from the kernels; called in the thread that trains."""
        for hook in self._hooks:
            hook.remove()

    def _before_lookup(self, kernel: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        if self._closed or not torch.is_grad_enabled():  # an evaluation changes nothing
            return
        given = dict(zip(("indices", "offsets"), args, strict=False)) | kwargs
        for number, ids in ids_by_table(
            kernel.feature_table_map,  # type: ignore[arg-type]
            given["indices"],
            given["offsets"],
            given.get("batch_size_per_feature_per_rank"),
        ):
            if rows := self._rows.get((id(kernel), number)):
                self._copy(rows, ids)

    def _copy(self, rows: "_Rows", ids: torch.Tensor) -> None:
        """Copy those rows that are neither copied nor written; wait as long as that is too much."""
        start = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._copies(rows, ids))
        self.waited_s += time.perf_counter() - start

    def _copies(self, rows: "_Rows", ids: torch.Tensor) -> bool:
        """As `_copy`; returns False instead of waiting."""
        unsafe = rows.unsafe(ids)
        if not len(unsafe):
            return True
        held_bytes = self._held_bytes + len(unsafe) * rows.row_bytes
        if held_bytes > self.limit_bytes:
            return False
        rows.copy(unsafe)
        self._held_bytes, self.most_bytes = held_bytes, max(self.most_bytes, held_bytes)
        return True


class _Rows:
    """The rows of a table with their copies, in parts of consecutive rows.

    Attributes:
        safe: bool [rows], whether a row is copied, or needs no copy since it is written.
        row_bytes: that the copy of a row takes.
        parts: each a view of these rows.
    """

    def __init__(self, shards: Sequence[LocalShard]) -> None:
        count = len(shards[0].tensor)
        self.safe = torch.zeros(count, dtype=torch.bool)
        num_parts = -(-sum(shard.nbytes for shard in shards) // _PART_BYTES)
        self._part_rows = -(-count // num_parts)
        self.parts = [
            _Part([shard.narrow(start, start + self._part_rows) for shard in shards], safe)
            for start, safe in zip(
                range(0, count, self._part_rows), self.safe.split(self._part_rows), strict=True
            )
        ]
        self.row_bytes = self.parts[0].row_bytes

    def unsafe(self, ids: torch.Tensor) -> torch.Tensor:
        """Those that must be copied before they change, once each and in order."""
        # The kernel reads, and changes, row 0 in place of an id that is out of range.
        ids = ids.where((ids >= 0) & (ids < len(self.safe)), 0)
        return ids[~self.safe[ids]].unique()

    def copy(self, rows: torch.Tensor) -> None:
        """Copy these rows, in order, into their parts."""
        ends = torch.arange(1, len(self.parts)) * self._part_rows
        pieces = rows.tensor_split(torch.searchsorted(rows, ends))
        for number, (part, piece) in enumerate(zip(self.parts, pieces, strict=True)):
            if len(piece):
                part.copy(piece - number * self._part_rows)


class _Part:
    """Consecutive rows of a table: what a file has of it.

    Attributes:
        shards: their rows and optimizer state.
        row_bytes: that the copy of a row takes.
    """

    def __init__(self, shards: list[LocalShard], safe: torch.Tensor) -> None:
        self.shards = shards
        self._safe = safe
        # The numbers of the rows that are copied, then the copies by shard: as much memory as for
        # all rows, of which only that of `_count` rows is touched and thereby taken.
        self._memory: list[torch.Tensor] = []
        self._count = 0
        self.row_bytes = sum(shard.tensor[:1].nbytes for shard in shards) + torch.int32.itemsize

    def copied(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of a shard that are copied, int32 [count], and their copies."""
        if not self._count:
            return torch.empty(0, dtype=torch.int32), self.shards[number].tensor[:0]
        return self._memory[0][: self._count], self._memory[1 + number][: self._count]

    @torch.no_grad()
    def copy(self, rows: torch.Tensor) -> None:
        """Copy these rows."""
        if not self._memory:
            tensors = [shard.tensor for shard in self.shards]
            self._memory = [torch.empty(len(self._safe), dtype=torch.int32)]
            self._memory += [torch.empty(t.shape, dtype=t.dtype) for t in tensors]
        start, self._count = self._count, self._count + len(rows)
        numbers, *copies = (memory[start : self._count] for memory in self._memory)
        numbers.copy_(rows)
        for shard, copy in zip(self.shards, copies, strict=True):
            torch.index_select(shard.tensor, 0, rows, out=copy)
        self._safe[rows] = True

    def release(self) -> int:
        """Drop the copies, and make none again; returns their bytes."""
        dropped, self._count, self._memory = self._count * self.row_bytes, 0, []
        self._safe.fill_(True)
        return dropped


def ids_by_table(
    feature_tables: Sequence[int],
    indices: torch.Tensor,
    offsets: torch.Tensor,
    batch_sizes: Sequence[Sequence[int]] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The ids that a kernel looks up, by the number of their table; a table may come repeatedly.

    Args:
        feature_tables: the table of each of F features.
        indices: ids, feature by feature.
        offsets: [F * B + 1], the ends of the bags of ids.
        batch_sizes: by feature and rank, where they differ.
    """
    if batch_sizes is None:
        sizes = [(len(offsets) - 1) // len(feature_tables)] * len(feature_tables)
    else:
        sizes = [sum(by_rank) for by_rank in batch_sizes]
    ends = torch.tensor([0, *sizes]).cumsum(0)
    bounds = offsets[ends].tolist()
    for table, start, stop in zip(feature_tables, bounds, bounds[1:], strict=False):
        if start < stop:
            yield table, indices[start:stop].long()
