"""The state of a rank as the tensors of a delta: changed rows where they are known, else all."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.snapshot import KernelTable, LiveState
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.config.publish import RowType
from infnet_dist.deltas.manifest import INDICES, SCALE, table_in
from infnet_dist.deltas.rounding import rounded
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError


class ChangedPart(NamedTuple):
    """Changed rows of one kernel table, copied.

    Attributes:
        table: its name.
        num_embeddings: rows of the whole table.
        first: the shard's first row in the table.
        num_rows: of the shard.
        rows: int64 [K], the changed ones in the table, ascending.
        shards: of rows and optimizer state, each with the values of the changed rows alone.
    """

    table: str
    num_embeddings: int
    first: int
    num_rows: int
    rows: torch.Tensor
    shards: list[LocalShard]

    @property
    def checksum(self) -> int:
        """CRC-32 of the changed rows' numbers."""
        return zlib.crc32(memoryview(self.rows.numpy()))  # type: ignore[arg-type]


@torch.no_grad()
def changed_part(table: KernelTable, marked: torch.Tensor, names: str) -> ChangedPart:
    """Copy the marked rows of a table, and their optimizer state, to the CPU.

    Args:
        table: the shards of the table in its kernel.
        marked: bool [rows].
        names: the beginning of the names of the shards to copy, e.g. `model.`.
    """
    (weight,) = (shard for shard in table.shards if TABLE.fullmatch(shard.name))
    local = marked.nonzero().squeeze(1)
    shards = [
        replace(shard, tensor=shard.tensor.index_select(0, local.to(shard.tensor.device)).cpu())
        for shard in table.shards
        if shard.name.startswith(names)
    ]
    first, name = weight.offsets[0], table_in(weight.name)
    assert name is not None
    return ChangedPart(
        name, weight.shape[0], first, len(marked), local.cpu().contiguous() + first, shards
    )


class DeltaState(LiveState):
    """The tensors of a delta on this rank; all ranks make it at once.

    Args:
        parts: of the tables with changed rows.
        whole: all other shards, in memory that doesn't change.
        rows: data type of the rows.
        context: this worker.

    Attributes:
        tables: of all ranks, number of rows of the tables with changed rows.
    """

    def __init__(
        self,
        parts: Sequence[ChangedPart],
        whole: Sequence[LocalShard],
        rows: RowType,
        context: WorkerContext,
    ) -> None:
        layouts = context.together(lambda: _layouts(_gathered(parts, context)))
        self.tables = {table: layout.num_embeddings for table, layout in layouts.items()}
        shards: list[LocalShard] = []
        for part in parts:
            shards += _placed(part, layouts[part.table])
        # A rank without rows of such a table has empty shards of it.
        shards += [shard for shard in whole if table_in(shard.name) not in layouts]
        super().__init__([new for shard in shards for new in rounded_shards(shard, rows)])


class _Layout(NamedTuple):
    """Where the changed rows of a table are in its delta.

    Attributes:
        num_embeddings: rows of the table.
        total: K, its changed rows.
        starts: by the first row of a shard, the number of changed rows before.
    """

    num_embeddings: int
    total: int
    starts: dict[int, int]


_Described = tuple[int, int, int, int, int]  # num_embeddings, first, count, K, checksum


def _gathered(parts: Sequence[ChangedPart], context: WorkerContext) -> dict[str, set[_Described]]:
    """What all ranks know of their parts, by table; column shards of the same rows are one."""
    own = [
        (p.table, (p.num_embeddings, p.first, p.num_rows, len(p.rows), p.checksum)) for p in parts
    ]
    found: dict[str, set[_Described]] = {}
    for one in context.gather(own):
        for table, described in one:
            found.setdefault(table, set()).add(described)
    return found


def _layouts(described: dict[str, set[_Described]]) -> dict[str, _Layout]:
    layouts = {}
    for table, parts in described.items():
        starts: dict[int, int] = {}
        total = end = 0
        for _, first, count, changed, _ in sorted(parts, key=lambda part: part[1]):
            if first < end:
                raise CheckpointError(
                    f"shards of table {table!r} that hold row {first} disagree on which rows "
                    "changed; publish in full with publish.max_chain: 0, and report this"
                )
            starts[first], total, end = total, total + changed, first + count
        layouts[table] = _Layout(next(iter(parts))[0], total, starts)
    return layouts


def _placed(part: ChangedPart, layout: _Layout) -> list[LocalShard]:
    """The part's shards at their places in the delta's tensors, and their rows' numbers."""
    start, placed = layout.starts[part.first], []
    for shard in part.shards:
        sides = divmod(shard.shape[0], part.num_embeddings)
        copy, rest = divmod(shard.offsets[0] - part.first, part.num_embeddings)
        if sides[1] or rest:
            raise CheckpointError(
                f"{shard.name} is {list(shard.shape)}, not one value or more for each of "
                f"{part.num_embeddings:,} rows; publish in full with publish.max_chain: 0"
            )
        placed.append(
            replace(
                shard,
                shape=(sides[0] * layout.total, *shard.shape[1:]),
                offsets=(copy * layout.total + start, *shard.offsets[1:]),
            )
        )
        if TABLE.fullmatch(shard.name) and shard.offsets[1] == 0:
            name = f"{INDICES}{part.table}"
            placed.append(LocalShard(name, (layout.total,), (start,), part.rows, replicated=False))
    return placed


def rounded_shards(shard: LocalShard, rows: RowType) -> Iterable[LocalShard]:
    """The shard, its rows in another type; beside those of int8 their scale."""
    if rows == "fp32" or not TABLE.fullmatch(shard.name):
        yield shard
        return
    values, scale = rounded(shard.tensor, rows)
    yield replace(shard, tensor=values)
    if scale is not None:
        name = f"{SCALE}{table_in(shard.name)}"
        yield LocalShard(name, shard.shape[:1], shard.offsets[:1], scale, shard.replicated)
