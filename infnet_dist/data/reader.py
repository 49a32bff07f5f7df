"""Parquet training set -> batches: shuffled, seeded, dealt evenly, read ahead in a thread.

Every rank makes the same number of steps and every row is read exactly once: ranks get intervals
of the epoch's order (`epoch_order.py`), and the last batch of a rank is padded with weight 0.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.data.collate import Collator
from infnet_dist.data.decode import Columns, decode, unknown_rows
from infnet_dist.data.epoch_order import (
    Block,
    Interval,
    RowGroup,
    deal,
    epoch_order,
    num_steps,
    remaining,
)
from infnet_dist.data.manifest import Manifest, Part, arrow_type
from infnet_dist.data.part_files import (
    ARROW,
    OpenedPart,
    OpenPart,
    UnreadableError,
    opened,
)
from infnet_dist.data.prefetch import prefetch
from infnet_dist.data.row_views import Rows, RowShuffler, concatenate
from infnet_dist.data.unknown_ids import UnknownIds
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema

log = logging.getLogger("infnet_dist")


@dataclass(frozen=True)
class Reader:
    """Reads one split for one rank.

    Attributes:
        folder: the training set.
        schema: the features and tasks to read, a selection of the manifest's.
        batch_size: rows per batch of this rank.
        shuffle_rows: rows shuffled together; None keeps the order on disk (evaluation).
        prefetch_batches: batches made ahead of their use.
        open_part: how a part is opened (`part_opener`).
        unknown_ids: which ids are dropped to 0 (training).
        max_bad_row_groups: that may be left out because they can't be read; not those that hold
            wrong values.
        left_out: rows by file and row group of those that were, in this attempt or before.
    """

    folder: Path
    manifest: Manifest
    schema: Schema
    split: str
    batch_size: int
    rank: int
    world_size: int
    seed: int = 0
    shuffle_rows: int | None = None
    prefetch_batches: int = 4
    open_part: OpenPart = ARROW
    unknown_ids: UnknownIds = field(default_factory=UnknownIds)
    max_bad_row_groups: int = 0
    left_out: dict[tuple[str, int], int] = field(default_factory=dict, init=False, compare=False)
    _idle_shufflers: list[RowShuffler] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def rows(self) -> int:
        """Rows of the split, over all ranks."""
        return self.manifest.split(self.split).rows

    def num_steps(self, consumed: Sequence[Interval] = ()) -> int:
        """Batches that every rank gets from what is left of an epoch."""
        left = remaining(self.rows, consumed)
        return num_steps(left, world_size=self.world_size, batch_size=self.batch_size)

    def batches(self, epoch: int = 0, consumed: Sequence[Interval] = ()) -> Iterator[RankingBatch]:
        """The batches of this rank; `consumed` intervals of the epoch's order are left out.

        Raises:
            DataError: a part can't be read, isn't the one that the manifest means, or has a value
                that the schema doesn't allow; names file, row group, column and value.
        """
        return prefetch(self._batches(epoch, consumed), self.prefetch_batches)

    def _batches(self, epoch: int, consumed: Sequence[Interval]) -> Iterator[RankingBatch]:
        with self._shuffler() as join:
            yield from self._joined_batches(epoch, consumed, join)

    @contextmanager
    def _shuffler(self) -> Iterator[RowShuffler]:
        """Memory for blocks; that of an earlier epoch is warm."""
        join = self._idle_shufflers.pop() if self._idle_shufflers else RowShuffler()
        try:
            yield join
        finally:
            self._idle_shufflers.append(join)

    def _joined_batches(
        self, epoch: int, consumed: Sequence[Interval], join: RowShuffler
    ) -> Iterator[RankingBatch]:
        collate = Collator(self.schema, self.batch_size, self.unknown_ids)
        mine = deal(remaining(self.rows, consumed), rank=self.rank, world_size=self.world_size)
        steps, missing = self.num_steps(consumed), self.batch_size
        parts = {part.file: part for part in self.manifest.split(self.split).parts}
        taken: list[Rows] = []
        intervals: list[Interval] = []
        for block, spans in self._blocks(epoch, mine):
            rows = join(self._read(block, parts), block.permutation())
            for start, stop in spans:
                while start < stop:
                    count = min(missing, stop - start)
                    first = start - block.start
                    picked = rows[first : first + count]
                    intervals.append((start, start + count))
                    start, missing = start + count, missing - count
                    # What a batch still misses may be read into the memory of this block.
                    taken.append(picked.own() if missing else picked)
                    if not missing:
                        yield collate(concatenate(taken), BatchRows(epoch, tuple(intervals)))
                        steps, missing, taken, intervals = steps - 1, self.batch_size, [], []
            del rows, picked  # so that the next block is decoded into their memory
        for _ in range(steps):  # the padded rest; empty for a rank that got a row less
            rows = concatenate(taken) if taken else join([_no_rows(self.schema)], np.arange(0))
            yield collate(rows, BatchRows(epoch, tuple(intervals)))
            taken, intervals = [], []

    def _blocks(
        self, epoch: int, intervals: Sequence[Interval]
    ) -> Iterator[tuple[Block, list[Interval]]]:
        """The blocks that `intervals` meet, each with what it has of them."""
        blocks = epoch_order(
            self.manifest.split(self.split),
            epoch=epoch,
            seed=self.seed,
            shuffle_rows=self.shuffle_rows,
        )
        for block in blocks:
            cut = [(max(a, block.start), min(b, block.start + block.rows)) for a, b in intervals]
            spans = [(low, high) for low, high in cut if low < high]
            if spans:
                yield block, spans

    def _read(self, block: Block, parts: Mapping[str, Part]) -> Iterator[Columns]:
        """The row groups of a block; a file is opened once for those that follow one another."""
        for name, together in groupby(block.groups, key=lambda group: group.file):
            left = list(together)
            while left:
                try:
                    with opened(self.folder, parts[name], self.open_part) as part:
                        while left:
                            yield self._decode(part, left[0])
                            del left[0]
                except (OSError, pa.ArrowException, UnreadableError) as error:
                    yield self._leave_out(left.pop(0), error)

    def _leave_out(self, group: RowGroup, error: Exception) -> Columns:
        """Rows that weigh nothing in place of a row group that can't be read, if that is allowed.

        Raises:
            DataError: it isn't, or not so often.
        """
        path = self.folder / group.file
        reason = " ".join(str(error).split())
        what = f"can't read row group {group.index} of {path}: {reason}"
        known = (group.file, group.index) in self.left_out
        if not known and len(self.left_out) >= self.max_bad_row_groups:
            raise DataError(
                f"{what}; repair the file, ingest again, or leave out such row groups with "
                f"data.max_bad_row_groups (now {self.max_bad_row_groups})"
            ) from None
        if not known:
            self.left_out[group.file, group.index] = group.rows
            log.warning(
                "%s; its %s rows are left out (%s of %s row groups)",
                *(what, f"{group.rows:,}", len(self.left_out), self.max_bad_row_groups),
            )
        return unknown_rows(self.schema, group.rows)

    def _decode(self, part: OpenedPart, group: RowGroup) -> Columns:
        table = part.read_group(group.index, list(self.schema.columns))
        return decode(table, self.schema, f"{group.file}, row group {group.index}")


def _no_rows(schema: Schema) -> Columns:
    types = {column: arrow_type(schema, column) for column in schema.columns}
    return decode(pa.schema(types).empty_table(), schema, "no rows")
