"""The order in which an epoch reads rows, and the share of each rank; needs row counts only.

The order of an epoch is a permutation of all rows that depends only on (seed, epoch), not on the
number of workers: row groups are permuted and packed into blocks of about `shuffle_rows` rows,
mostly of one file; blocks are permuted, and rows within each block. Ranks read *intervals* of this
order, of equal size to within one row. So the consumed rows of an epoch are a few intervals, and
the remaining rows can be divided among any number of workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from infnet_dist.data.manifest import Split

ORDER_VERSION = 2  # increase if the order changes: checkpoints store intervals of one order
Interval = tuple[int, int]  # [start, stop) in an epoch's order


@dataclass(frozen=True)
class RowGroup:
    """One row group of one part."""

    file: str
    index: int
    rows: int


@dataclass(frozen=True)
class Block:
    """Rows [start, start + rows) of the order: the permuted rows of whole row groups."""

    start: int
    rows: int
    groups: tuple[RowGroup, ...]
    seed: tuple[int, ...] | None

    def permutation(self) -> npt.NDArray[np.int64]:
        """For each position of the order, the row index in the concatenated row groups."""
        if self.seed is None:
            return np.arange(self.rows)
        return np.random.default_rng(self.seed).permutation(self.rows)


def epoch_order(
    split: Split, *, epoch: int, seed: int, shuffle_rows: int | None
) -> tuple[Block, ...]:
    """The blocks of an epoch; `shuffle_rows=None` keeps the order on disk."""
    groups = [
        RowGroup(part.file, index, rows)
        for part in split.parts
        for index, rows in enumerate(part.row_groups)
        if rows
    ]
    if shuffle_rows is None:
        packs = [[group] for group in groups]
    else:
        rng = np.random.default_rng((seed, epoch, 0))
        packs = _packs([groups[i] for i in rng.permutation(len(groups))], shuffle_rows)
        packs = [packs[i] for i in rng.permutation(len(packs))]
    blocks, start = [], 0
    for number, pack in enumerate(packs):
        block_seed = None if shuffle_rows is None else (seed, epoch, 1 + number)
        blocks.append(Block(start, _rows(pack), tuple(pack), block_seed))
        start += blocks[-1].rows
    return tuple(blocks)


def _packs(groups: Sequence[RowGroup], rows: int) -> list[list[RowGroup]]:
    """Packs of at least `rows` rows: from one file, to open it once; leftovers from several."""
    packs: list[list[RowGroup]] = []
    by_file: dict[str, list[RowGroup]] = {}
    for group in groups:
        pack = by_file.setdefault(group.file, [])
        pack.append(group)
        if _rows(pack) >= rows:
            packs.append(by_file.pop(group.file))
    rest: list[RowGroup] = []
    for group in chain.from_iterable(by_file.values()):
        rest.append(group)
        if _rows(rest) >= rows:
            packs.append(rest)
            rest = []
    return [*packs, rest] if rest else packs


def _rows(groups: Sequence[RowGroup]) -> int:
    return sum(group.rows for group in groups)


def remaining_intervals(total: int, consumed: Sequence[Interval]) -> list[Interval]:
    """The intervals of [0, total) that `consumed` doesn't cover."""
    left, cursor = [], 0
    for start, stop in sorted(consumed):
        if cursor < min(start, total):
            left.append((cursor, min(start, total)))
        cursor = max(cursor, stop)
    return left + ([(cursor, total)] if cursor < total else [])


def rank_share(intervals: Sequence[Interval], *, rank: int, world_size: int) -> list[Interval]:
    """The share of a rank: contiguous in `intervals`, of equal size to within one row."""
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


def merge_intervals(intervals: Sequence[Interval]) -> list[Interval]:
    """The intervals sorted, with overlapping and adjacent ones merged."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif start < stop:
            merged.append((start, stop))
    return merged


def num_steps(intervals: Sequence[Interval], *, world_size: int, batch_size: int) -> int:
    """Number of steps of every rank over `intervals`: the batches of the largest share."""
    total = sum(stop - start for start, stop in intervals)
    largest_share = math.ceil(total / world_size)
    return math.ceil(largest_share / batch_size)
