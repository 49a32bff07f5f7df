"""Which rows an epoch reads, in which order, and who reads them. No I/O: footers are enough.

The order of an epoch is a permutation of all rows that depends on (seed, epoch) alone, not on the
number of workers: row groups are permuted, packed into blocks of about `shuffle_rows` rows, and the
rows of a block are permuted. Workers are dealt *intervals* of that order, equal to within one row.
So what an epoch has consumed is a few intervals, and what is left can be dealt again to any number
of workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infnet_dist.data.manifest import Split

Interval = tuple[int, int]  # [start, stop) in an epoch's order


@dataclass(frozen=True)
class RowGroup:
    """One row group of one part."""

    file: str
    index: int
    rows: int


@dataclass(frozen=True)
class Block:
    """Rows [start, start + rows) of the order: some whole row groups, permuted inside."""

    start: int
    rows: int
    groups: tuple[RowGroup, ...]
    seed: tuple[int, ...] | None

    def permutation(self) -> npt.NDArray[np.int64]:
        """Row number within the concatenated row groups, for each place of the order."""
        if self.seed is None:
            return np.arange(self.rows)
        return np.random.default_rng(self.seed).permutation(self.rows)


def epoch_order(
    split: Split, *, epoch: int, seed: int, shuffle_rows: int | None
) -> tuple[Block, ...]:
    """The blocks of one epoch; `shuffle_rows=None` keeps the order on disk."""
    groups = [
        RowGroup(part.file, index, rows)
        for part in split.parts
        for index, rows in enumerate(part.row_groups)
        if rows
    ]
    if shuffle_rows is not None:
        order = np.random.default_rng((seed, epoch, 0)).permutation(len(groups))
        groups = [groups[i] for i in order]
    blocks: list[Block] = []
    packed: list[RowGroup] = []
    start = rows = 0
    for position, group in enumerate(groups):
        packed.append(group)
        rows += group.rows
        if rows >= (shuffle_rows or 1) or position == len(groups) - 1:
            block_seed = None if shuffle_rows is None else (seed, epoch, 1 + len(blocks))
            blocks.append(Block(start, rows, tuple(packed), block_seed))
            start, rows, packed = start + rows, 0, []
    return tuple(blocks)


def remaining(total: int, consumed: Sequence[Interval]) -> list[Interval]:
    """The intervals of [0, total) that aren't in `consumed`."""
    left, cursor = [], 0
    for start, stop in sorted(consumed):
        if cursor < start:
            left.append((cursor, start))
        cursor = max(cursor, stop)
    return left + ([(cursor, total)] if cursor < total else [])


def deal(intervals: Sequence[Interval], *, rank: int, world_size: int) -> list[Interval]:
    """The share of one rank: contiguous in `intervals`, equal over ranks to within one row."""
    total = sum(stop - start for start, stop in intervals)
    first, last = (total * r // world_size for r in (rank, rank + 1))
    mine, passed = [], 0
    for start, stop in intervals:
        low = max(start, start + first - passed)
        high = min(stop, start + last - passed)
        if low < high:
            mine.append((low, high))
        passed += stop - start
    return mine


def merge(intervals: Sequence[Interval]) -> list[Interval]:
    """Sorted, with touching intervals joined."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif start < stop:
            merged.append((start, stop))
    return merged


def num_steps(intervals: Sequence[Interval], *, world_size: int, batch_size: int) -> int:
    """Steps that every rank makes over `intervals`: the largest share, in batches."""
    total = sum(stop - start for start, stop in intervals)
    largest_share = math.ceil(total / world_size)
    return math.ceil(largest_share / batch_size)
