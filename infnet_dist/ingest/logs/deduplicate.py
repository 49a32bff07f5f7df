"""Stage settle: the rows of a partition's users, sorted by user and time, each once; counted.

Ties in time keep the order of the files and their rows.
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

from infnet_dist.config.logs import CounterFeature, LogsIngest
from infnet_dist.ingest.logs.hashing import counting_bucket, keys, mix, together
from infnet_dist.ingest.logs.shuffle_files import BucketWriter, read_bucket, renamed
from infnet_dist.ingest.logs.sketch import HashArray, occurrences, smallest_hashes
from infnet_dist.ingest.logs.splits import LEFT_OUT, Calendar

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
DUPLICATE = "duplicate of an earlier row"
COUNTS = pa.schema(
    {"value": pa.int64(), "text": pa.large_string(), "count": pa.int64(), "pending": pa.int64()}
)
_SAMPLE_SEED = 11


@dataclass(frozen=True)
class Settle:
    """The task of one partition.

    Attributes:
        pieces: files of stage clean.
        paths: by fragment, the file that it is of.
        sample_share: share of the rows before valid from which boundaries are fitted.
        events_from_ms: events of state rows before this are in the state's sums already.
        out: folder for `rows`, `counts`, `sample` and one file per group of counters.
    """

    config: LogsIngest
    partition: int
    num_partitions: int
    num_counting: int
    pieces: tuple[Path, ...]
    paths: tuple[str, ...]
    sample_share: float
    events_from_ms: int
    out: Path
    quarantine: Path

    def run(self) -> dict[str, Any]:
        """Rows kept, all and by split, doubles, sum and number of watch times before valid."""
        config, calendar = self.config, Calendar.of(self.config)
        rows = read_bucket(self.pieces, self.partition, self.num_partitions)
        users = keys(rows[config.user].combine_chunks())
        times = rows[config.time.column].to_numpy()
        order = np.lexsort((times, users))
        rows = rows.take(pa.array(order)).append_column("_user", pa.array(users[order]))
        rows, doubles, example = self._without_doubles(rows)
        new = ~rows["_state"].to_numpy()
        times = rows[config.time.column].to_numpy()
        learned = new & calendar.before_valid(times)
        self._write(rows, "rows")
        self._count_values(rows, learned, new & ~learned)
        self._sample(rows, learned)
        for by in counter_groups(config):
            self._hand_to_counting(rows, by, calendar)
        splits = np.bincount(calendar.splits(times)[new], minlength=LEFT_OUT + 1)
        return {
            "rows": int(new.sum()),
            "duplicates": doubles,
            "examples": {DUPLICATE: example} if example else {},
            "splits": splits.tolist(),
        } | self._watch_time(rows, learned)

    def _without_doubles(self, rows: pa.Table) -> tuple[pa.Table, int, str]:
        """The rows, the number of doubles and one of them as text.

        Rows with a null in one of the columns are nobody's double.
        """
        if not self.config.unique:
            return rows, 0, ""
        columns = [rows[name].combine_chunks() for name in self.config.unique]
        codes = pd.DataFrame({i: c.dictionary_encode().indices for i, c in enumerate(columns)})
        whole = np.logical_and.reduce([c.is_valid() for c in columns])
        example = ""
        double = codes.duplicated(keep="first").to_numpy() & whole
        if double.any():
            bad = rows.filter(pa.array(double))
            files = pa.array([self.paths[i] for i in bad["_fragment"].to_pylist()], pa.string())
            why = pa.array([DUPLICATE] * len(bad), pa.string())
            bad = bad.drop_columns(["_state", "_user", "_fragment"])
            bad = bad.append_column("_reason", why).append_column("_file", files)
            with renamed(self.quarantine) as path:
                pq.write_table(bad, path)
            first = bad.slice(0, 1).to_pylist()[0]
            example = f"row {first['_row']} of {first['_file']}: " + ", ".join(
                f"{name}={first[name]}" for name in self.config.unique
            )
        return rows.filter(pa.array(~double)), int(double.sum()), example

    def _write(self, rows: pa.Table, name: str) -> None:
        with BucketWriter(self._path(name), rows.schema, 1) as writer:
            writer.write(rows, np.zeros(len(rows), np.int64))

    def _path(self, name: str) -> Path:
        return settled_path(self.out, self.partition, name)

    def _count_values(self, rows: pa.Table, learned: BoolArray, later: BoolArray) -> None:
        """Values of each table with their counts, a bucket per table; of hashes a sketch."""
        with BucketWriter(self._path("counts"), COUNTS, len(self.config.table_names)) as writer:
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
        chosen = learned & (mix(places, _SAMPLE_SEED) <= threshold)
        with renamed(self._path("sample")) as path:
            pq.write_table(rows.select(list(self.config.dense)).filter(pa.array(chosen)), path)

    def _hand_to_counting(self, rows: pa.Table, by: Sequence[str], calendar: Calendar) -> None:
        """Who asks and what happened, by key, to the counting tasks."""
        key = together([keys(rows[name].combine_chunks()) for name in by])
        known = np.logical_and.reduce([rows[name].is_valid().to_numpy() for name in by])
        times = rows[self.config.time.column].to_numpy()
        counts = (times >= self.events_from_ms) | ~rows["_state"].to_numpy()
        columns = {
            "_key": mix(key).view(np.int64),
            "_time": times,
            "_until": calendar.known_until(times),
            "_partition": np.full(len(rows), self.partition, np.int32),
            "_row": np.arange(len(rows), dtype=np.int32),
        }
        for name, counter in self._counters(by):
            columns[name] = counts & _is_event(rows, counter.where)
        table = pa.table(columns).filter(pa.array(known))
        with BucketWriter(self._path(group_name(by)), table.schema, self.num_counting) as writer:
            writer.write(table, counting_bucket(table["_key"].to_numpy(), self.num_counting))

    def _counters(self, by: Sequence[str]) -> Iterator[tuple[str, CounterFeature]]:
        return ((n, c) for n, c in self.config.counters.items() if c.by == tuple(by))

    def _watch_time(self, rows: pa.Table, learned: BoolArray) -> dict[str, Any]:
        if self.config.watch_time is None:
            return {}
        known = rows[self.config.watch_time].filter(pa.array(learned)).drop_null()
        return {"watch_time_ms": pc.sum(known, min_count=0).as_py() or 0, "watched": len(known)}


def settled_path(folder: Path, partition: int, name: str) -> Path:
    """A file of a partition's task."""
    return folder / f"{partition:05d}.{name}"


def counter_groups(config: LogsIngest) -> list[tuple[str, ...]]:
    """The columns that counters go by, each once: one exchange serves all its counters."""
    return list(dict.fromkeys(counter.by for counter in config.counters.values()))


def group_name(by: Sequence[str]) -> str:
    """What the files of counters by these columns are called."""
    return "counter-" + "-".join(by)


def columns_of_table(config: LogsIngest, table: str) -> list[str]:
    """The columns whose values are rows of a table."""
    ids = [name for name, of in config.ids.items() if of == table]
    return ids + [name for name, column in config.lists.items() if column.table == table]


def _counted(columns: Sequence[pa.ChunkedArray], learned: BoolArray, later: BoolArray) -> pa.Table:
    tables = []
    for chosen, name in ((learned, "count"), (later, "pending")):
        for values in (_flat(column.filter(pa.array(chosen))) for column in columns):
            found = pc.value_counts(values.drop_null())
            tables.append(_count_rows(found.field("values"), {name: found.field("counts")}))
    # Of several columns a value may stand several times; whoever merges adds them up.
    return pa.concat_tables(tables)


def _sketched(columns: Sequence[pa.ChunkedArray], learned: BoolArray, later: BoolArray) -> pa.Table:
    """The smallest hashes of all values, with their counts."""
    hashes = {
        name: np.concatenate([_hashes(column.filter(pa.array(chosen))) for column in columns])
        for chosen, name in ((learned, "count"), (later, "pending"))
    }
    sketch = smallest_hashes(np.concatenate(list(hashes.values())))
    counts = {name: pa.array(occurrences(sketch, found)) for name, found in hashes.items()}
    return _count_rows(pa.array(sketch), counts)


def _hashes(column: pa.ChunkedArray) -> HashArray:
    return mix(keys(_flat(column).drop_null().combine_chunks()))


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
    """Rows that are events: all, or those with 1 in a column."""
    if where is None:
        return np.ones(len(rows), bool)
    return pc.fill_null(rows[where], 0).to_numpy() == 1
