"""Opens parts of a training set: Parquet files, or files of a Petastorm data set.

Both give the same tables. `epoch_order.py` decides which rows are read, in which order and by whom,
and does so independently of the format. A part is compared with the manifest whenever it is opened.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.data.checks.fingerprint import fingerprint
from infnet_dist.data.manifest import Part
from infnet_dist.errors import DataError
from infnet_dist.io.contrib import load_contrib
from infnet_dist.schema import Schema


class PartFile(Protocol):
    """The interface of `pq.ParquetFile` that the reader and the checks use."""

    @property
    def schema_arrow(self) -> pa.Schema:
        """Columns and their types."""

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer."""

    @property
    def num_row_groups(self) -> int:
        """Number of row groups."""

    def read_row_group(
        self, index: int, /, columns: Sequence[str], use_threads: bool = False
    ) -> pa.Table:
        """The columns of a row group."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""


OpenPart = Callable[[Path, pa.NativeFile], PartFile]


def _open_plain(path: Path, source: pa.NativeFile) -> PartFile:
    return pq.ParquetFile(source, page_checksum_verification=True)  # if pages have checksums


ARROW: OpenPart = _open_plain


def part_opener(kind: Literal["arrow", "petastorm"], schema: Schema) -> OpenPart:
    """The function that opens parts, by `data.reader`.

    Raises:
        DataError: petastorm is selected but isn't installed.
    """
    if kind == "arrow":
        return ARROW
    opener: OpenPart = load_contrib("petastorm.part").part_opener(schema)
    return opener


class UnreadableError(DataError):
    """A row group can't be read, or its number of rows differs from the manifest."""


class ChangedError(DataError):
    """A part has changed since its training set was made."""


@dataclass(frozen=True)
class OpenedPart:
    """An open part that matches the manifest.

    Attributes:
        file: the part.
        fingerprint: see `fingerprint`.
    """

    file: PartFile
    fingerprint: str
    _path: Path
    _part: Part
    _source: pa.NativeFile
    _state: tuple[int, int]

    def read_group(
        self, index: int, columns: Sequence[str], *, number: str | None = None
    ) -> pa.Table:
        """The rows of a row group that are read, with their number checked against the manifest.

        The footer is checked before decoding, since memory is allocated by it, and the decoded
        rows after, since a file may hold fewer rows than its footer says.

        Args:
            index: of the row group.
            columns: their names.
            number: name of one more column, int64: the number of each row in the row group.

        Raises:
            UnreadableError: the row group has another number of rows.
            ChangedError: the file has changed since it was opened.
            OSError, pa.ArrowException: the row group can't be read.
        """
        where, rows = f"{self._path}, row group {index}", self._part.rows_in_file[index]
        there = index < self.file.num_row_groups
        promised = self.file.metadata.row_group(index).num_rows if there else None
        if promised != rows:
            found = "is missing" if promised is None else f"has {promised} rows"
            raise UnreadableError(f"{where} {found}, the manifest says {rows}; ingest again")
        wanted = list(dict.fromkeys([*columns, *self._part.selects_by]))
        try:
            table = self.file.read_row_group(index, columns=wanted, use_threads=False)
        finally:
            if _state(self._source) != self._state:
                raise ChangedError(f"{self._path} changed while it was read; {_RESTORE}")
        if len(table) != rows or any(len(column) != rows for column in table.columns):
            raise UnreadableError(
                f"{where} contains {len(table)} rows, its footer says {rows}; ingest again"
            )
        if number is not None:
            table = table.append_column(number, pa.array(np.arange(rows)))
        return self._part.select(table, index)


@contextmanager
def open_checked(folder: Path, part: Part, open_part: OpenPart = ARROW) -> Iterator[OpenedPart]:
    """Open a part of the training set in `folder`; all rows are read through this.

    Raises:
        ChangedError: the file's fingerprint differs from the manifest.
        OSError, pa.ArrowException: the file is missing or isn't Parquet.
    """
    path = folder / part.file
    with pa.OSFile(str(path)) as source:
        state, found = _state(source), fingerprint(source)
        if part.fingerprint is not None and found != part.fingerprint:
            raise ChangedError(_difference(path, found, part.fingerprint))
        with open_part(path, source) as file:
            yield OpenedPart(file, found, path, part, source, state)


def _state(source: pa.NativeFile) -> tuple[int, int]:
    """Size and modification time of an open file."""
    found = os.fstat(source.fileno())
    return found.st_size, found.st_mtime_ns


def _difference(path: Path, found: str, expected: str) -> str:
    size, right_size = (text.partition(":")[0] for text in (found, expected))
    change = f"{size} bytes, expected {right_size}" if size != right_size else "another footer"
    return f"{path} has changed since its training set was made ({change}); {_RESTORE}"


_RESTORE = "restore the file, or ingest again and start a new run"
