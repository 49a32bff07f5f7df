"""How a part of a training set is opened: as plain Parquet, or as a file of a Petastorm data set.

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

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.data.checks.fingerprint import fingerprint
from infnet_dist.data.manifest import Part
from infnet_dist.errors import DataError
from infnet_dist.io.contrib import load_contrib
from infnet_dist.schema import Schema


class PartFile(Protocol):
    """What the reader and the checks use of `pq.ParquetFile`."""

    @property
    def schema_arrow(self) -> pa.Schema:
        """Columns and their types."""

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer."""

    @property
    def num_row_groups(self) -> int:
        """Row groups of the part."""

    def read_row_group(
        self, index: int, /, columns: Sequence[str], use_threads: bool = False
    ) -> pa.Table:
        """These columns of a row group."""

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
    return pq.ParquetFile(source, page_checksum_verification=True)  # where pages have checksums


ARROW: OpenPart = _open_plain


def part_opener(kind: Literal["arrow", "petastorm"], schema: Schema) -> OpenPart:
    """How to open the parts of a set: `data.reader`.

    Raises:
        DataError: petastorm is wanted and isn't installed.
    """
    if kind == "arrow":
        return ARROW
    opener: OpenPart = load_contrib("petastorm.part").part_opener(schema)
    return opener


class UnreadableError(DataError):
    """A row group can't be read, or hasn't the rows that the manifest says."""


class ChangedError(DataError):
    """A part isn't the file that its training set was made with."""


@dataclass(frozen=True)
class OpenedPart:
    """A part that is open, and is the file that the manifest means.

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

    def read_group(self, index: int, columns: Sequence[str]) -> pa.Table:
        """These columns of a row group, which must have as many rows as the manifest says.

        Memory is taken by what a footer says, so that is compared first; and what was decoded
        after, since a file may hold less than its footer says.

        Raises:
            UnreadableError: it has another number of rows.
            ChangedError: the file was written to since it was opened.
            OSError, pa.ArrowException: it can't be read.
        """
        where, rows = f"{self._path}, row group {index}", self._part.row_groups[index]
        there = index < self.file.num_row_groups
        promised = self.file.metadata.row_group(index).num_rows if there else None
        if promised != rows:
            found = "isn't there" if promised is None else f"has {promised} rows"
            raise UnreadableError(f"{where} {found}, its manifest says {rows}; ingest again")
        try:
            table = self.file.read_row_group(index, columns=columns, use_threads=False)
        finally:
            if _state(self._source) != self._state:
                raise ChangedError(f"{self._path} was written to while it was read; {_RESTORE}")
        if len(table) != rows or any(len(column) != rows for column in table.columns):
            raise UnreadableError(
                f"{where} holds {len(table)} rows, its footer says {rows}; ingest again"
            )
        return table


@contextmanager
def opened(folder: Path, part: Part, open_part: OpenPart = ARROW) -> Iterator[OpenedPart]:
    """Open a part of the training set in `folder`; the one way to read its rows.

    Raises:
        ChangedError: it isn't the file that the manifest means.
        OSError, pa.ArrowException: it isn't there, or is no Parquet file.
    """
    path = folder / part.file
    with pa.OSFile(str(path)) as source:
        state, found = _state(source), fingerprint(source)
        if part.fingerprint is not None and found != part.fingerprint:
            raise ChangedError(_difference(path, found, part.fingerprint))
        with open_part(path, source) as file:
            yield OpenedPart(file, found, path, part, source, state)


def _state(source: pa.NativeFile) -> tuple[int, int]:
    """Size and time of the last change of an open file."""
    found = os.fstat(source.fileno())
    return found.st_size, found.st_mtime_ns


def _difference(path: Path, found: str, expected: str) -> str:
    size, right_size = (text.partition(":")[0] for text in (found, expected))
    what = f"{size} bytes, {right_size} expected" if size != right_size else "another footer"
    return f"{path} isn't the file that its training set was made with ({what}); {_RESTORE}"


_RESTORE = "put the file back, or ingest again and start a new run"
