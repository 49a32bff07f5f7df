"""The work of the reader, which runs in a thread beside the steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infnet_dist.batch import RankingBatch
from infnet_dist.data.collate import Collator
from infnet_dist.data.row_views import Rows, RowShuffler
from infnet_dist.profiling.instrument import replaced


@dataclass
class ReaderTimes:
    """Sums of a rank's reader.

    Attributes:
        read_s: seconds to open, decode, check and shuffle blocks of row groups.
        read_rows: their rows.
        collate_s: seconds to make batches of them.
        batches: batches made.
        batch_size: rows of a batch.
    """

    read_s: float = 0.0
    read_rows: int = 0
    collate_s: float = 0.0
    batches: int = 0
    batch_size: int = 0

    @property
    def per_batch(self) -> dict[str, float]:
        """Seconds per batch: a block is read at once, and counts for all batches of its rows."""
        return {
            "read": self.read_s / max(self.read_rows, 1) * self.batch_size,
            "collate": self.collate_s / max(self.batches, 1),
        }


@contextmanager
def timed_reader() -> Iterator[ReaderTimes]:
    """The times of the readers that run meanwhile."""
    times = ReaderTimes()

    def read(method: Callable[..., Rows]) -> Callable[..., Rows]:
        def timed(shuffler: RowShuffler, *args: Any) -> Rows:
            start = time.perf_counter()
            rows = method(shuffler, *args)
            times.read_s += time.perf_counter() - start
            times.read_rows += len(rows)
            return rows

        return timed

    def collated(method: Callable[..., RankingBatch]) -> Callable[..., RankingBatch]:
        def timed(collator: Collator, *args: Any) -> RankingBatch:
            start = time.perf_counter()
            batch = method(collator, *args)
            times.collate_s += time.perf_counter() - start
            times.batches += 1
            times.batch_size = len(batch.weights_B)
            return batch

        return timed

    with replaced(RowShuffler, "__call__", read), replaced(Collator, "__call__", collated):
        yield times
