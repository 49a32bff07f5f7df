"""Stage deduplicate: the rows of a partition, sorted by user and time, without duplicates.

Rows with equal times keep the order of the files and of the rows in them. The stage also counts
values for the vocabularies and sends the events of counters to stage count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.config.log_columns import CounterFeature
from infnet_dist.config.logs import LogsIngest
from infnet_dist.features.hashing import splitmix64
from infnet_dist.ingest.convert.keys import keys
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.encoding.hashing import combined, counting_bucket
from infnet_dist.ingest.logs.encoding.sketch import HashArray, occurrences, smallest_hashes
from infnet_dist.ingest.logs.negatives import contradicting, splits_of
from infnet_dist.ingest.logs.splits import OTHERS, SPLITS, Calendar
from infnet_dist.ingest.logs.stages.partition import Partitioned
from infnet_dist.ingest.logs.stages.runner import Outcome
from infnet_dist.ingest.logs.stages.shuffle_files import BucketWriter, read_bucket
from infnet_dist.ingest.logs.task_sizes import num_tasks, power_of_two
from infnet_dist.io.filesystem import published

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
DUPLICATE = "duplicate of an earlier row"
COUNTS = pa.schema(
    {"value": pa.int64(), "text": pa.large_string(), "count": pa.int64(), "pending": pa.int64()}
)
_SAMPLE_SEED = 11
_SAMPLE_ROWS = 1_000_000  # from which the boundaries of dense features are fitted
_LONG_AGO_MS = -(2**62)


@dataclass(frozen=True)
class Deduplicated:
    """Result of stage deduplicate.

    Attributes:
        outcomes: outcome of each partition.
        num_counting: tasks of stage count per group of counters.
        folder: folder of the files.
    """

    outcomes: list[Outcome]
    num_counting: int
    folder: Path

    @property
    def num_partitions(self) -> int:
        """Number of partitions of users."""
        return len(self.outcomes)

    def files(self, name: str) -> tuple[Path, ...]:
        """Files of one kind, by partition."""
        return tuple(_path(self.folder, p, name) for p in range(self.num_partitions))


def deduplicate(context: IngestContext, partitioned: Partitioned) -> Deduplicated:
    """Run the stage."""
    num_partitions, num_rows = partitioned.num_partitions, partitioned.rows
    num_counting = power_of_two(num_tasks(num_rows, context.sizes.count))
    by_number = {fragment.number: fragment.file.path for fragment in partitioned.fragments}
    folder = context.file("deduplicate", "")
    tasks = {
        f"{partition:05d}": DeduplicatePartition(
            config=context.config,
            partition=partition,
            num_partitions=num_partitions,
            num_counting=num_counting,
            partitioned=partitioned.files,
            paths=tuple(by_number.get(i, "") for i in range(max(by_number) + 1)),
            sample_share=_SAMPLE_ROWS / max(num_rows, 1),
            events_from_ms=context.ingested.boundary_ms if context.ingested else _LONG_AGO_MS,
            out=folder,
            quarantine=context.quarantine / f"duplicates-{partition:05d}.parquet",
        )
        for partition in range(num_partitions)
    }
    each = [max(num_rows // num_partitions, 1)] * num_partitions
    outcomes = context.runner.run("deduplicate", tasks, rows=each)
    return Deduplicated(outcomes, num_counting, folder)


@dataclass(frozen=True)
class DeduplicatePartition:
    """The task of one partition.

    Attributes:
        partitioned: files of stage partition.
        paths: path of the log file, by number of the fragment.
        sample_share: share of the rows before valid from which boundaries are fitted.
        events_from_ms: earlier events of state rows are already in the sums of the state.
        out: folder for `rows`, `counts`, `sample` and one file per group of counters.
    """

    config: LogsIngest
    partition: int
    num_partitions: int
    num_counting: int
    partitioned: tuple[Path, ...]
    paths: tuple[str, ...]
    sample_share: float
    events_from_ms: int
    out: Path
    quarantine: Path

    def run(self) -> dict[str, Any]:
        """Numbers of rows, by split too, and of duplicates; watch times before valid."""
        config, calendar = self.config, Calendar.of(self.config)
        rows = read_bucket(self.partitioned, self.partition, self.num_partitions)
        users = keys(rows[config.user].combine_chunks())
        times = rows[config.time.column].to_numpy()
        order = np.lexsort((times, users))
        rows = rows.take(pa.array(order)).append_column("_user", pa.array(users[order]))
        rows, duplicates, example = self._without_duplicates(rows)
        new = ~rows["_state"].to_numpy()
        times = rows[config.time.column].to_numpy()
        learned = new & calendar.before_valid(times)
        self._write(rows, "rows")
        self._count_values(rows, learned, new & ~learned)
        self._sample(rows, learned)
        for by in counter_groups(config):
            self._write_events(rows, by, calendar)
        splits = np.bincount(splits_of(config, rows)[new], minlength=len(SPLITS) + len(OTHERS))
        return {
            "rows": int(new.sum()),
            "duplicates": duplicates,
            "examples": {DUPLICATE: example} if example else {},
            "splits": splits.tolist(),
            "contradicting": int((contradicting(config, rows) & new).sum()),
        } | self._watch_time(rows, learned)

    def _without_duplicates(self, rows: pa.Table) -> tuple[pa.Table, int, str]:
        """The rows, the number of duplicates and one of them as text.

        Rows with a null in one of the columns are no duplicates.
        """
        if not self.config.unique:
            return rows, 0, ""
        columns = [rows[name].combine_chunks() for name in self.config.unique]
        codes = pd.DataFrame({i: c.dictionary_encode().indices for i, c in enumerate(columns)})
        whole = np.logical_and.reduce([c.is_valid() for c in columns])
        example = ""
        duplicate = codes.duplicated(keep="first").to_numpy() & whole
        if duplicate.any():
            bad = rows.filter(pa.array(duplicate))
            files = pa.array([self.paths[i] for i in bad["_fragment"].to_pylist()], pa.string())
            why = pa.array([DUPLICATE] * len(bad), pa.string())
            bad = bad.drop_columns(["_state", "_user", "_fragment"])
            bad = bad.append_column("_reason", why).append_column("_file", files)
            with published(self.quarantine) as path:
                pq.write_table(bad, path)
            first = bad.slice(0, 1).to_pylist()[0]
            example = f"row {first['_row']} of {first['_file']}: " + ", ".join(
                f"{name}={first[name]}" for name in self.config.unique
            )
        return rows.filter(pa.array(~duplicate)), int(duplicate.sum()), example

    def _write(self, rows: pa.Table, name: str) -> None:
        with BucketWriter(self._file(name), rows.schema, 1) as writer:
            writer.write(rows, np.zeros(len(rows), np.int64))

    def _file(self, name: str) -> Path:
        return _path(self.out, self.partition, name)

    def _count_values(self, rows: pa.Table, learned: BoolArray, later: BoolArray) -> None:
        """Count the values of each table, one bucket per table; of hashed tables a sketch."""
        with BucketWriter(self._file("counts"), COUNTS, len(self.config.table_names)) as writer:
            for number, table in enumerate(self.config.table_names):
                columns = [rows[name] for name in columns_of_table(self.config, table)]
                if self.config.table(table).encoding == "vocabulary":
                    counted = _counted(columns, learned, later)
                else:
                    counted = _sketched(columns, learned, later)
                writer.write(counted, np.full(len(counted), number))

    def _sample(self, rows: pa.Table, learned: BoolArray) -> None:
        places = (np.int64(self.partition) << 32) + np.arange(len(rows))
        threshold = np.uint64(min(self.sample_share * 2.0**64, 2**64 - 1025))
        chosen = learned & (splitmix64(places, _SAMPLE_SEED) <= threshold)
        with published(self._file("sample")) as path:
            pq.write_table(rows.select(list(self.config.dense)).filter(pa.array(chosen)), path)

    def _write_events(self, rows: pa.Table, by: Sequence[str], calendar: Calendar) -> None:
        """Write the rows that need counters, and which are events, by key for stage count."""
        key = combined([keys(rows[name].combine_chunks()) for name in by])
        known = np.logical_and.reduce([rows[name].is_valid().to_numpy() for name in by])
        times = rows[self.config.time.column].to_numpy()
        counts = (times >= self.events_from_ms) | ~rows["_state"].to_numpy()
        columns = {
            "_key": splitmix64(key).view(np.int64),
            "_time": times,
            "_until": calendar.known_until(times),
            "_partition": np.full(len(rows), self.partition, np.int32),
            "_row": np.arange(len(rows), dtype=np.int32),
        }
        for name, counter in self._counters(by):
            columns[name] = counts & _is_event(rows, counter.where)
        table = pa.table(columns).filter(pa.array(known))
        with BucketWriter(self._file(group_name(by)), table.schema, self.num_counting) as writer:
            writer.write(table, counting_bucket(table["_key"].to_numpy(), self.num_counting))

    def _counters(self, by: Sequence[str]) -> Iterator[tuple[str, CounterFeature]]:
        return ((n, c) for n, c in self.config.counters.items() if c.by == tuple(by))

    def _watch_time(self, rows: pa.Table, learned: BoolArray) -> dict[str, Any]:
        if self.config.watch_time is None:
            return {}
        known = rows[self.config.watch_time].filter(pa.array(learned)).drop_null()
        return {"watch_time_ms": pc.sum(known, min_count=0).as_py() or 0, "watched": len(known)}


def _path(folder: Path, partition: int, name: str) -> Path:
    return folder / f"{partition:05d}.{name}"


def counter_groups(config: LogsIngest) -> list[tuple[str, ...]]:
    """Groups of counters by the same columns; each group is counted together."""
    return list(dict.fromkeys(counter.by for counter in config.counters.values()))


def group_name(by: Sequence[str]) -> str:
    """Name of the files of the counters by these columns."""
    return "counter-" + "-".join(by)


def columns_of_table(config: LogsIngest, table: str) -> list[str]:
    """The columns whose values are ids of a table."""
    ids = [name for name, of in config.ids.items() if of == table]
    return ids + [name for name, column in config.lists.items() if column.table == table]


def _counted(columns: Sequence[pa.ChunkedArray], learned: BoolArray, later: BoolArray) -> pa.Table:
    tables = []
    for chosen, name in ((learned, "count"), (later, "pending")):
        for values in (_flat(column.filter(pa.array(chosen))) for column in columns):
            found = pc.value_counts(values.drop_null())
            tables.append(_count_rows(found.field("values"), {name: found.field("counts")}))
    # A value of several columns appears several times; merging sums its counts.
    return pa.concat_tables(tables)


def _sketched(columns: Sequence[pa.ChunkedArray], learned: BoolArray, later: BoolArray) -> pa.Table:
    """A sketch: the smallest hashes of all values, with their counts."""
    hashes = {
        name: np.concatenate([_hashes(column.filter(pa.array(chosen))) for column in columns])
        for chosen, name in ((learned, "count"), (later, "pending"))
    }
    sketch = smallest_hashes(np.concatenate(list(hashes.values())))
    counts = {name: pa.array(occurrences(sketch, found)) for name, found in hashes.items()}
    return _count_rows(pa.array(sketch), counts)


def _hashes(column: pa.ChunkedArray) -> HashArray:
    return splitmix64(keys(_flat(column).drop_null().combine_chunks()))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def _count_rows(values: pa.Array, counts: dict[str, pa.Array]) -> pa.Table:
    text = pa.types.is_large_string(values.type)
    columns = {"text" if text else "value": values} | counts
    zeros = pa.array(np.zeros(len(values), np.int64))
    nothing = {"value": pa.nulls(len(values), pa.int64()), "count": zeros, "pending": zeros}
    nothing["text"] = pa.nulls(len(values), pa.large_string())
    return pa.table([columns.get(n, nothing[n]) for n in COUNTS.names], schema=COUNTS)


def _is_event(rows: pa.Table, where: str | None) -> BoolArray:
    """Rows that are events: all, or those with 1 in the column."""
    if where is None:
        return np.ones(len(rows), bool)
    return pc.fill_null(rows[where], 0).to_numpy() == 1
