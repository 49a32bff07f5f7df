"""Stage count: the number of events before each row, for the counters of a bucket of keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.ingest.counters import EventCounts
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.encoding.hashing import counting_bucket
from infnet_dist.ingest.logs.stages.deduplicate import Deduplicated, counter_groups, group_name
from infnet_dist.ingest.logs.stages.shuffle_files import BucketWriter, read_bucket
from infnet_dist.io.filesystem import published

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def count_events(
    context: IngestContext, deduplicated: Deduplicated, boundary_ms: int
) -> tuple[tuple[Path, ...], ...]:
    """Run the stage; the files with the counts, by group of counters."""
    config, number, tasks = context.config, deduplicated.num_counting, {}
    groups = counter_groups(config)
    for by in groups:
        group = group_name(by)
        sums = context.state_files(group)
        for bucket in range(number):
            name = f"{group}-{bucket:05d}"
            tasks[name] = CountEvents(
                counters=tuple(n for n, c in config.counters.items() if c.by == by),
                events=deduplicated.files(group),
                bucket=bucket,
                num_buckets=number,
                num_partitions=deduplicated.num_partitions,
                previous=overlapping(sums, bucket, number) if sums else (),
                boundary_ms=boundary_ms,
                out=context.file("count", f"{name}.rows"),
                state=context.state / f"{name}.parquet" if config.extendable else None,
            )
    context.runner.run("count", tasks)
    outs = [task.out for task in tasks.values()]
    return tuple(tuple(outs[g * number : (g + 1) * number]) for g in range(len(groups)))


@dataclass(frozen=True)
class CountEvents:
    """The task of one bucket of keys, for the counters by the same columns.

    Attributes:
        counters: names of the counters: columns of `events`, true where a row is an event.
        events: files of stage deduplicate.
        bucket: number of the bucket, of `num_buckets`.
        previous: files with the sums of the existing training set at its last boundary that may
            contain keys of this bucket.
        boundary_ms: time up to which sums are kept for the next ingest.
        out: output file with the counts, one bucket per partition.
        state: file for the sums at the boundary; None: not kept.
    """

    counters: tuple[str, ...]
    events: tuple[Path, ...]
    bucket: int
    num_buckets: int
    num_partitions: int
    previous: tuple[Path, ...]
    boundary_ms: int
    out: Path
    state: Path | None

    def run(self) -> dict[str, Any]:
        """Number of rows with counts."""
        rows = read_bucket(self.events, self.bucket, self.num_buckets)
        keys, times = rows["_key"].to_numpy(), rows["_time"].to_numpy()
        happened = np.stack([rows[n].to_numpy().astype(np.float64) for n in self.counters], 1)
        events = happened.any(axis=1)
        log = EventCounts(keys[events], times[events], happened[events])
        earlier = _Sums.read(self.previous, self.counters).only(self.bucket, self.num_buckets)
        counts = log.before(keys, rows["_until"].to_numpy()) + earlier.of(keys)
        self._write(rows, counts)
        if self.state is not None:
            known = np.union1d(keys[events], earlier.keys)
            boundary = np.full(len(known), self.boundary_ms)
            sums = _Sums(known, log.before(known, boundary) + earlier.of(known))
            sums.write(self.state, self.counters)
        return {"rows": len(rows)}

    def _write(self, rows: pa.Table, counts: FloatArray) -> None:
        columns = {"_row": rows["_row"]}
        for i, name in enumerate(self.counters):
            columns[name] = pa.array(counts[:, i].astype(np.float32))
        table = pa.table(columns)
        with BucketWriter(self.out, table.schema, self.num_partitions) as writer:
            writer.write(table, rows["_partition"].to_numpy().astype(np.int64))


@dataclass(frozen=True)
class _Sums:
    """Number of earlier events by key: int64 [K] ascending, float64 [K, counters]."""

    keys: IntArray
    sums: FloatArray

    @classmethod
    def read(cls, paths: tuple[Path, ...], counters: tuple[str, ...]) -> "_Sums":
        if not paths:
            return cls(np.zeros(0, np.int64), np.zeros((0, len(counters))))
        table = pa.concat_tables([pq.read_table(path) for path in paths])
        keys = table["_key"].to_numpy()
        order = np.argsort(keys)
        assert len(np.unique(keys)) == len(keys), "a key appears in two files of sums"
        sums = np.stack([table[name].to_numpy() for name in counters], axis=1)
        return cls(keys[order], sums[order])

    def write(self, path: Path, counters: tuple[str, ...]) -> None:
        columns: dict[str, npt.NDArray] = {"_key": self.keys}
        columns |= {name: self.sums[:, i] for i, name in enumerate(counters)}
        with published(path) as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    def of(self, keys: IntArray) -> FloatArray:
        """Sums of these keys, 0 for unknown ones."""
        if not len(self.keys):
            return np.zeros((len(keys), self.sums.shape[1]))
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((self.keys[place] == keys)[:, None], self.sums[place], 0.0)

    def only(self, bucket: int, num_buckets: int) -> "_Sums":
        """The sums of the keys of a bucket."""
        here = counting_bucket(self.keys, num_buckets) == bucket
        return _Sums(self.keys[here], self.sums[here])


def overlapping(files: Sequence[Path], bucket: int, num_buckets: int) -> tuple[Path, ...]:
    """The files of sums, made with another number of buckets, that may contain keys of this one.

    Both numbers are powers of two, so a bucket is part of one bucket of the smaller number.
    """
    fewer = min(len(files), num_buckets)
    return tuple(file for i, file in enumerate(files) if i % fewer == bucket % fewer)
