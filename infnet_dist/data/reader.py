"""Parquet training set -> batches: shuffled, seeded, dealt evenly, read ahead in a thread.

Every rank makes the same number of steps and every row is read exactly once: ranks get intervals
of the epoch's order (`order.py`), and the last batch of a rank is padded with weight 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.data.collate import Collator
from infnet_dist.data.columns import Columns, decode, join
from infnet_dist.data.manifest import Manifest, arrow_type
from infnet_dist.data.order import Block, Interval, deal, epoch_order, num_steps, remaining
from infnet_dist.data.prefetch import prefetch
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema


@dataclass(frozen=True)
class Reader:
    """Reads one split for one rank.

    Attributes:
        folder: the training set.
        schema: the features and tasks to read, a selection of the manifest's.
        batch_size: rows per batch of this rank.
        shuffle_rows: rows shuffled together; None keeps the order on disk (evaluation).
        prefetch_batches: batches made ahead of their use.
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
            DataError: a part can't be read (names the file).
        """
        return prefetch(self._batches(epoch, consumed), self.prefetch_batches)

    def _batches(self, epoch: int, consumed: Sequence[Interval]) -> Iterator[RankingBatch]:
        collate = Collator(self.schema, self.batch_size)
        mine = deal(remaining(self.rows, consumed), rank=self.rank, world_size=self.world_size)
        steps = self.num_steps(consumed)
        pending: list[tuple[Interval, Columns]] = []
        for piece in self._pieces(epoch, mine):
            pending.append(piece)
            while _rows(pending) >= self.batch_size:
                yield self._cut(collate, epoch, pending)
                steps -= 1
        for _ in range(steps):  # the padded rest; empty for a rank that got a row less
            yield self._cut(collate, epoch, pending)

    def _pieces(
        self, epoch: int, intervals: Sequence[Interval]
    ) -> Iterator[tuple[Interval, Columns]]:
        """The rows of `intervals` in order, block by block."""
        blocks = epoch_order(
            self.manifest.split(self.split),
            epoch=epoch,
            seed=self.seed,
            shuffle_rows=self.shuffle_rows,
        )
        for start, stop in intervals:
            for block in blocks:
                low, high = max(start, block.start), min(stop, block.start + block.rows)
                if low < high:
                    rows = block.permutation()[low - block.start : high - block.start]
                    yield (low, high), join([*self._read(block)]).pick(rows)

    def _read(self, block: Block) -> Iterator[Columns]:
        columns = list(self.schema.columns)
        for group in block.groups:
            try:
                with pq.ParquetFile(self.folder / group.file) as file:
                    table = file.read_row_group(group.index, columns=columns, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"can't read row group {group.index} of {self.folder / group.file}: {error}"
                ) from None
            yield decode(table, self.schema, f"{group.file}, row group {group.index}")

    def _cut(
        self, collate: Collator, epoch: int, pending: list[tuple[Interval, Columns]]
    ) -> RankingBatch:
        """Take the first `batch_size` rows off `pending` (fewer at the end) and collate them."""
        taken: list[Columns] = []
        intervals: list[Interval] = []
        missing = self.batch_size
        while pending and missing:
            (start, stop), columns = pending[0]
            count = min(missing, stop - start)
            taken.append(columns.cut(0, count))
            intervals.append((start, start + count))
            missing -= count
            pending[0] = ((start + count, stop), columns.cut(count, len(columns)))
            if start + count == stop:
                pending.pop(0)
        together = taken[0] if len(taken) == 1 else join(taken or [_no_rows(self.schema)])
        return collate(together, BatchRows(epoch, tuple(intervals)))


def _rows(pending: list[tuple[Interval, Columns]]) -> int:
    return sum(stop - start for (start, stop), _ in pending)


def _no_rows(schema: Schema) -> Columns:
    types = {column: arrow_type(schema, column) for column in schema.columns}
    return decode(pa.schema(types).empty_table(), schema, "no rows")
