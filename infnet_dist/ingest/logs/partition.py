"""Stage clean: a fragment's rows, cleaned, dealt to partitions by user."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.clean import Cleaner
from infnet_dist.ingest.logs.hashing import buckets_of, keys, mix
from infnet_dist.ingest.logs.joins import join_all
from infnet_dist.ingest.logs.rules import Rules
from infnet_dist.ingest.logs.shuffle_files import BucketWriter, renamed
from infnet_dist.ingest.logs.source import Fragment, raise_unless_corrupt, read_chunks, reason

_USER_SEED = 7  # another than that of hashed ids
# Where a row comes from, and whether an earlier ingest wrote it.
_ORIGIN = {"_fragment": pa.int32(), "_row": pa.int64(), "_state": pa.bool_()}


class UnreadableError(Exception):
    """A fragment can't be read to its end."""


@dataclass(frozen=True)
class Scatter:
    """The task of one fragment.

    Attributes:
        out: file to write, of `num_partitions` buckets.
        quarantine: file for bad rows, written if there are any.
    """

    config: LogsIngest
    rules: Rules
    fragment: Fragment
    num_partitions: int
    out: Path
    quarantine: Path

    def run(self) -> dict[str, Any]:
        """Rows, bad rows by reason with examples, times, joins; or why it can't be read.

        Raises:
            DataError: a column is missing or of another type, or the file can't be read and
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
                    f"{file.path} can't be read ({error}); repair it, or leave out such files "
                    "with ingest.skip_bad_files"
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
                if self.fragment.state:  # clean already
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
        """The file's rows; errors of reading apart from those of writing."""
        try:
            yield from read_chunks(self.config, self.fragment)
        except (OSError, pa.ArrowException) as error:
            raise_unless_corrupt(error, self.fragment.file.path)
            raise UnreadableError(reason(error)) from None

    def _with_origin(self, good: pa.Table) -> pa.Table:
        fragment = pa.array(np.full(len(good), self.fragment.number, np.int32))
        state = pa.array(np.full(len(good), self.fragment.state))
        return good.append_column("_fragment", fragment).append_column("_state", state)

    def _partitions(self, good: pa.Table) -> np.ndarray:
        users = keys(good[self.config.user].combine_chunks())
        return buckets_of(mix(users, _USER_SEED), self.num_partitions)


def _numbers(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count))


class _Quarantine:
    """Writes bad rows as Parquet; no file if there are none."""

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
            path = self._stack.enter_context(renamed(self._path))
            self._writer = self._stack.enter_context(pq.ParquetWriter(path, bad.schema))
        self._writer.write_table(bad)
