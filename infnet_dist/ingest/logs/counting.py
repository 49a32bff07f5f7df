"""Stage count: of some keys, how many events there were before each row that asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.ingest.counters import EventCounts
from infnet_dist.ingest.logs.hashing import counting_bucket
from infnet_dist.ingest.logs.shuffle_files import BucketWriter, read_bucket, renamed

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Count:
    """The task of one bucket of keys, for the counters that go by the same columns.

    Attributes:
        counters: their names: columns of `asked`, true where a row is an event.
        asked: files of stage settle.
        bucket: of `num_buckets`.
        previous: files with sums of the training set so far, up to the boundary of its last ingest;
            those that may hold keys of this bucket.
        boundary_ms: up to when sums are kept for the next ingest.
        out: answers, a bucket per partition.
        state: file for the sums at the boundary; None: keep none.
    """

    counters: tuple[str, ...]
    asked: tuple[Path, ...]
    bucket: int
    num_buckets: int
    num_partitions: int
    previous: tuple[Path, ...]
    boundary_ms: int
    out: Path
    state: Path | None

    def run(self) -> dict[str, Any]:
        """Rows answered."""
        asked = read_bucket(self.asked, self.bucket, self.num_buckets)
        keys, times = asked["_key"].to_numpy(), asked["_time"].to_numpy()
        happened = np.stack([asked[n].to_numpy().astype(np.float64) for n in self.counters], 1)
        events = happened.any(axis=1)
        log = EventCounts(keys[events], times[events], happened[events])
        earlier = _Sums.read(self.previous, self.counters).only(self.bucket, self.num_buckets)
        counts = log.before(keys, asked["_until"].to_numpy()) + earlier.of(keys)
        self._answer(asked, counts)
        if self.state is not None:
            known = np.union1d(keys[events], earlier.keys)
            boundary = np.full(len(known), self.boundary_ms)
            sums = _Sums(known, log.before(known, boundary) + earlier.of(known))
            sums.write(self.state, self.counters)
        return {"rows": len(asked)}

    def _answer(self, asked: pa.Table, counts: FloatArray) -> None:
        columns = {"_row": asked["_row"]}
        for i, name in enumerate(self.counters):
            columns[name] = pa.array(counts[:, i].astype(np.float32))
        answers = pa.table(columns)
        with BucketWriter(self.out, answers.schema, self.num_partitions) as writer:
            writer.write(answers, asked["_partition"].to_numpy().astype(np.int64))


@dataclass(frozen=True)
class _Sums:
    """Events by key so far: int64 [K] ascending, float64 [K, counters]."""

    keys: IntArray
    sums: FloatArray

    @classmethod
    def read(cls, paths: tuple[Path, ...], counters: tuple[str, ...]) -> "_Sums":
        if not paths:
            return cls(np.zeros(0, np.int64), np.zeros((0, len(counters))))
        table = pa.concat_tables([pq.read_table(path) for path in paths])
        keys = table["_key"].to_numpy()
        order = np.argsort(keys)
        assert len(np.unique(keys)) == len(keys), "a key's sums stand in two places"
        sums = np.stack([table[name].to_numpy() for name in counters], axis=1)
        return cls(keys[order], sums[order])

    def write(self, path: Path, counters: tuple[str, ...]) -> None:
        columns: dict[str, npt.NDArray] = {"_key": self.keys}
        columns |= {name: self.sums[:, i] for i, name in enumerate(counters)}
        with renamed(path) as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    def of(self, keys: IntArray) -> FloatArray:
        """Sums of these keys, 0 where unknown."""
        if not len(self.keys):
            return np.zeros((len(keys), self.sums.shape[1]))
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((self.keys[place] == keys)[:, None], self.sums[place], 0.0)

    def only(self, bucket: int, num_buckets: int) -> "_Sums":
        """The keys that a counting task is about."""
        here = counting_bucket(self.keys, num_buckets) == bucket
        return _Sums(self.keys[here], self.sums[here])


def overlapping(files: Sequence[Path], bucket: int, num_buckets: int) -> tuple[Path, ...]:
    """Of the sums' files of another number of buckets, those with keys of this bucket.

    Both numbers are powers of two, so a bucket lies within one of fewer buckets.
    """
    fewer = min(len(files), num_buckets)
    return tuple(file for i, file in enumerate(files) if i % fewer == bucket % fewer)
