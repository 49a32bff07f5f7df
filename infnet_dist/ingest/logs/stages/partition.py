"""Stage partition: the rows of a file fragment, cleaned and joined, partitioned by user."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import DataError
from infnet_dist.features.hashing import splitmix64
from infnet_dist.ingest.convert.keys import keys
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.encoding.hashing import buckets_of
from infnet_dist.ingest.logs.reading.clean import Cleaner
from infnet_dist.ingest.logs.reading.fragments import (
    Fragment,
    raise_unless_corrupt,
    read_chunks,
    reason,
)
from infnet_dist.ingest.logs.reading.id_types import check_spellings
from infnet_dist.ingest.logs.reading.joins import join_all
from infnet_dist.ingest.logs.reading.rules import Rules
from infnet_dist.ingest.logs.stages.runner import Outcome
from infnet_dist.ingest.logs.stages.shuffle_files import BucketWriter
from infnet_dist.ingest.logs.task_sizes import num_tasks, rows_at_once
from infnet_dist.io.filesystem import published

_USER_SEED = 7  # differs from the seed of hashed ids
# The origin of a row, and whether it is state of an earlier ingest.
_ORIGIN = {"_fragment": pa.int32(), "_row": pa.int64(), "_state": pa.bool_()}


@dataclass(frozen=True)
class Partitioned:
    """Result of stage partition.

    Attributes:
        fragments: fragments that could be read.
        outcomes: outcome of each.
        files: file of each, with one bucket per partition.
        unreadable: reasons by path of files that can't be read.
        num_partitions: number of partitions of users.
    """

    fragments: list[Fragment]
    outcomes: list[Outcome]
    files: tuple[Path, ...]
    unreadable: dict[str, str]
    num_partitions: int

    @property
    def rows(self) -> int:
        """Number of good new rows."""
        return sum(outcome["rows"] for outcome in self.outcomes)

    @property
    def read(self) -> int:
        """Number of new rows, bad ones included."""
        return sum(outcome.get("read", 0) for outcome in self.outcomes)

    @property
    def unmatched(self) -> Counter[str]:
        """By join, number of new rows without a match."""
        return sum((Counter[str](o.get("unmatched", {})) for o in self.outcomes), Counter[str]())

    @property
    def is_empty(self) -> bool:
        """Whether there is no new row, good or bad."""
        return not self.read

    @property
    def times_ms(self) -> tuple[int, int]:
        """Times of the first and the last row."""
        times = [outcome["times"] for outcome in self.outcomes if outcome.get("times")]
        return min(t[0] for t in times), max(t[1] for t in times)


def partition(
    context: IngestContext,
    fragments: Sequence[Fragment],
    rules: Rules,
    unreadable: dict[str, str],
) -> Partitioned:
    """Run the stage.

    Args:
        context: settings and paths.
        fragments: fragments to read.
        rules: conditions on the columns.
        unreadable: reasons by path of files that are known to be unreadable.

    Raises:
        DataError: a column has an unsuitable type, or one id is written in two ways.
    """
    num_partitions = num_tasks(sum(f.rows for f in fragments), context.sizes.partition)
    tasks = {
        f"{fragment.number:05d}": PartitionFragment(
            config=context.config,
            rules=rules,
            fragment=fragment,
            num_partitions=num_partitions,
            out=context.file("partition", f"{fragment.number:05d}.rows"),
            quarantine=context.quarantine / f"{fragment.number:05d}.parquet",
        )
        for fragment in fragments
    }
    outcomes = context.runner.run("partition", tasks, rows=[f.rows for f in fragments])
    done = list(zip(tasks.values(), outcomes, strict=True))
    unreadable = unreadable | {
        task.fragment.file.path: outcome["unreadable"]
        for task, outcome in done
        if "unreadable" in outcome
    }
    read = [(task, o) for task, o in done if task.fragment.file.path not in unreadable]
    check_spellings(context.config, [(t.fragment.file.path, o["spellings"]) for t, o in read])
    return Partitioned(
        fragments=[task.fragment for task, _ in read],
        outcomes=[outcome for _, outcome in read],
        files=tuple(task.out for task, _ in read),
        unreadable=unreadable,
        num_partitions=num_partitions,
    )


class UnreadableError(Exception):
    """A fragment can't be read to its end."""


@dataclass(frozen=True)
class PartitionFragment:
    """The task of one fragment.

    Attributes:
        out: output file with `num_partitions` buckets.
        quarantine: file of bad rows, written if there are any.
    """

    config: LogsIngest
    rules: Rules
    fragment: Fragment
    num_partitions: int
    out: Path
    quarantine: Path

    def run(self) -> dict[str, Any]:
        """Numbers of rows and of bad rows by reason, times, joins; or why it is unreadable.

        Raises:
            DataError: a column is missing or has an unsuitable type, or the file can't be read and
                `skip_bad_files` is off.
        """
        file = self.fragment.file
        unmatched = Counter[str]()
        cleaner = Cleaner(self.rules, file.path, file.modified_ns // 1_000_000)
        try:
            rows, read, times = self._write(cleaner, unmatched)
        except UnreadableError as error:
            if not self.config.skip_bad_files:
                raise DataError(
                    f"{file.path} can't be read ({error}); repair it, or set "
                    "ingest.skip_bad_files=true"
                ) from None
            return {"rows": 0, "bad": {}, "bad_rows": 0, "unreadable": str(error)}
        return {
            "rows": 0 if self.fragment.state else rows,
            "read": 0 if self.fragment.state else read,
            "bad": cleaner.num_bad,
            "bad_rows": cleaner.bad_rows,
            "spellings": cleaner.spellings,
            "examples": cleaner.examples,
            "times": times,
            "unmatched": dict(unmatched),
        }

    def _write(
        self, cleaner: Cleaner, unmatched: Counter[str]
    ) -> tuple[int, int, tuple[int, int] | None]:
        rows, times = 0, None
        schema = pa.schema([*cleaner.rules.schema, *pa.schema(_ORIGIN)])
        with (
            BucketWriter(self.out, schema, self.num_partitions) as writer,
            _Quarantine(self.quarantine) as quarantine,
        ):
            first_row = self.fragment.first_row
            for raw in self._chunks():
                if self.fragment.state:  # cleaned by an earlier ingest
                    good = raw.cast(self.rules.schema).append_column("_row", _numbers(0, len(raw)))
                else:
                    path = self.fragment.file.path
                    good, bad = cleaner(join_all(self.config, raw, path, unmatched), first_row)
                    quarantine.write(bad)
                first_row += len(raw)
                if not len(good):
                    continue
                writer.write(self._with_origin(good).select(schema.names), self._partitions(good))
                rows += len(good)
                ends = pc.min_max(good[cleaner.rules.time_column]).as_py()
                low, high = times or (ends["min"], ends["max"])
                times = (min(low, ends["min"]), max(high, ends["max"]))
        return rows, first_row - self.fragment.first_row, times

    def _chunks(self) -> Iterator[pa.Table]:
        """The rows of the file; separates read errors from write errors."""
        try:
            max_rows = rows_at_once(self.config)
            yield from read_chunks(self.config, self.fragment, max_rows=max_rows)
        except (OSError, pa.ArrowException) as error:
            raise_unless_corrupt(error, self.fragment.file.path)
            raise UnreadableError(reason(error)) from None

    def _with_origin(self, good: pa.Table) -> pa.Table:
        fragment = pa.array(np.full(len(good), self.fragment.number, np.int32))
        state = pa.array(np.full(len(good), self.fragment.state))
        return good.append_column("_fragment", fragment).append_column("_state", state)

    def _partitions(self, good: pa.Table) -> np.ndarray:
        users = keys(good[self.config.user].combine_chunks())
        return buckets_of(splitmix64(users, _USER_SEED), self.num_partitions)


def _numbers(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count))


class _Quarantine:
    """Writes bad rows as Parquet; creates no file if there are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Quarantine":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, bad: pa.Table) -> None:
        if not len(bad):
            return
        if self._writer is None:
            path = self._stack.enter_context(published(self._path))
            self._writer = self._stack.enter_context(pq.ParquetWriter(path, bad.schema))
        self._writer.write_table(bad)
