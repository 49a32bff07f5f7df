"""Training set -> batches of one rank: shuffled by a seed, prefetched in a thread.

Every rank makes the same number of steps, and every row is read exactly once: ranks read intervals
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
from infnet_dist.data.decode import Columns, blank_rows, decode
from infnet_dist.data.epoch_order import (
    Block,
    Interval,
    RowGroup,
    epoch_order,
    num_steps,
    rank_share,
    remaining_intervals,
)
from infnet_dist.data.manifest import Manifest, Part, Split, arrow_type
from infnet_dist.data.part_files import ARROW, OpenedPart, OpenPart, UnreadableError, open_checked
from infnet_dist.data.prefetch import prefetch
from infnet_dist.data.row_views import Rows, RowShuffler, concatenate
from infnet_dist.data.unknown_ids import OutOfVocabulary, UnknownIds
from infnet_dist.data.window.replay import Replay
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema

log = logging.getLogger("infnet_dist")


@dataclass(frozen=True)
class Reader:
    """Reads one split for one rank.

    Attributes:
        folder: the training set.
        manifest: its manifest.
        schema: the features and tasks to read, a selection of the manifest's.
        batch_size: rows per batch of this rank.
        shuffle_rows: rows shuffled together; None keeps the order on disk (evaluation).
        prefetch_batches: batches prepared in advance.
        open_part: opens a part (`part_opener`).
        unknown_ids: which ids are dropped to 0 (training).
        replay: older rows that are mixed into each epoch; None: none.
        max_bad_row_groups: number of unreadable row groups that may be skipped; row groups with
            invalid values are never skipped.
        out_of_vocabulary: counts of ids that the model doesn't know.
        left_out: rows by (file, row group) of skipped row groups, in this attempt and earlier ones.
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
    replay: Replay | None = None
    max_bad_row_groups: int = 0
    out_of_vocabulary: OutOfVocabulary = field(default_factory=OutOfVocabulary, compare=False)
    left_out: dict[tuple[str, int], int] = field(default_factory=dict, init=False, compare=False)
    _idle_shufflers: list[RowShuffler] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def rows(self) -> int:
        """Number of rows of an epoch, over all ranks."""
        replayed = self.replay.rows if self.replay is not None else 0
        return self.manifest.split(self.split).rows + replayed

    def _epoch(self, epoch: int) -> Split:
        """The rows of an epoch: those of the split, and the sample of older ones."""
        split = self.manifest.split(self.split)
        if self.replay is None:
            return split
        parts = (*split.parts, *self.replay.sample(epoch))
        return split.model_copy(update={"parts": parts, "rows": self.rows})

    def num_steps(self, consumed: Sequence[Interval] = ()) -> int:
        """Number of batches of every rank in the rest of an epoch."""
        left = remaining_intervals(self.rows, consumed)
        return num_steps(left, world_size=self.world_size, batch_size=self.batch_size)

    def batches(self, epoch: int = 0, consumed: Sequence[Interval] = ()) -> Iterator[RankingBatch]:
        """The batches of this rank, without the `consumed` intervals of the epoch's order.

        Raises:
            DataError: a part can't be read, has changed, or has a value that the schema doesn't
                allow; names file, row group, column and value.
        """
        return prefetch(self._batches(epoch, consumed), self.prefetch_batches)

    def _batches(self, epoch: int, consumed: Sequence[Interval]) -> Iterator[RankingBatch]:
        with self._shuffler() as shuffle:
            yield from self._shuffled_batches(epoch, consumed, shuffle)

    @contextmanager
    def _shuffler(self) -> Iterator[RowShuffler]:
        """A shuffler, with the memory of an earlier epoch if there is one."""
        shuffler = self._idle_shufflers.pop() if self._idle_shufflers else RowShuffler()
        try:
            yield shuffler
        finally:
            self._idle_shufflers.append(shuffler)

    def _shuffled_batches(
        self, epoch: int, consumed: Sequence[Interval], shuffle: RowShuffler
    ) -> Iterator[RankingBatch]:
        collate = Collator(self.schema, self.batch_size, self.unknown_ids, self.out_of_vocabulary)
        mine = rank_share(
            remaining_intervals(self.rows, consumed), rank=self.rank, world_size=self.world_size
        )
        steps, missing = self.num_steps(consumed), self.batch_size
        split = self._epoch(epoch)
        parts = {part.file: part for part in split.parts}
        taken: list[Rows] = []
        intervals: list[Interval] = []
        for block, spans in self._blocks(split, epoch, mine):
            rows = shuffle(self._read(block, parts), block.permutation())
            for start, stop in spans:
                while start < stop:
                    count = min(missing, stop - start)
                    first = start - block.start
                    picked = rows[first : first + count]
                    intervals.append((start, start + count))
                    start, missing = start + count, missing - count
                    # The rest of an incomplete batch may be read into the memory of this block.
                    taken.append(picked.own() if missing else picked)
                    if not missing:
                        yield collate(concatenate(taken), BatchRows(epoch, tuple(intervals)))
                        steps, missing, taken, intervals = steps - 1, self.batch_size, [], []
            del rows, picked  # their memory is reused by the next block
        for _ in range(steps):  # padded; without rows on a rank whose share is one row smaller
            rows = concatenate(taken) if taken else shuffle([_no_rows(self.schema)], np.arange(0))
            yield collate(rows, BatchRows(epoch, tuple(intervals)))
            taken, intervals = [], []

    def _blocks(
        self, split: Split, epoch: int, intervals: Sequence[Interval]
    ) -> Iterator[tuple[Block, list[Interval]]]:
        """The blocks that overlap `intervals`, each with its part of them."""
        blocks = epoch_order(split, epoch=epoch, seed=self.seed, shuffle_rows=self.shuffle_rows)
        for block in blocks:
            cut = [(max(a, block.start), min(b, block.start + block.rows)) for a, b in intervals]
            spans = [(low, high) for low, high in cut if low < high]
            if spans:
                yield block, spans

    def _read(self, block: Block, parts: Mapping[str, Part]) -> Iterator[Columns]:
        """The row groups of a block; a file is opened once for consecutive ones."""
        for name, together in groupby(block.groups, key=lambda group: group.file):
            left = list(together)
            while left:
                try:
                    with open_checked(self.folder, parts[name], self.open_part) as part:
                        while left:
                            yield self._decode(part, left[0])
                            del left[0]
                except (OSError, pa.ArrowException, UnreadableError) as error:
                    yield self._leave_out(left.pop(0), error)

    def _leave_out(self, group: RowGroup, error: Exception) -> Columns:
        """Rows without information in place of an unreadable row group.

        Raises:
            DataError: `max_bad_row_groups` is exceeded.
        """
        path = self.folder / group.file
        reason = " ".join(str(error).split())
        what = f"can't read row group {group.index} of {path}: {reason}"
        known = (group.file, group.index) in self.left_out
        if not known and len(self.left_out) >= self.max_bad_row_groups:
            raise DataError(
                f"{what}; repair the file, ingest again, or allow skipped row groups with "
                f"data.max_bad_row_groups (now {self.max_bad_row_groups})"
            ) from None
        if not known:
            self.left_out[group.file, group.index] = group.rows
            log.warning(
                "%s; its %s rows are skipped (%s of at most %s row groups)",
                *(what, f"{group.rows:,}", len(self.left_out), self.max_bad_row_groups),
            )
        return blank_rows(self.schema, group.rows)

    def _decode(self, part: OpenedPart, group: RowGroup) -> Columns:
        table = part.read_group(group.index, list(self.schema.columns))
        return decode(table, self.schema, f"{group.file}, row group {group.index}")


def _no_rows(schema: Schema) -> Columns:
    types = {column: arrow_type(schema, column) for column in schema.columns}
    return decode(pa.schema(types).empty_table(), schema, "no rows")
