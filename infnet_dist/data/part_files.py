"""How a part of a training set is opened: as plain Parquet, or as a file of a Petastorm data set.

Both ways give the same tables; which rows are read, in which order and by whom is decided
elsewhere (`order.py`) and is the same. Whenever a part is opened, it is compared with the manifest.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.part_file import UNISCHEMA_FILE, PetastormFile, fields_beside
from infnet_dist.data.checks.fingerprint import fingerprint
from infnet_dist.data.manifest import Part, arrow_type
from infnet_dist.errors import DataError
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
    load_petastorm()
    return partial(PetastormPart, schema=schema)


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


class PetastormPart(PetastormFile):
    """A file of a Petastorm data set, in the types of a training set."""

    def __init__(self, path: Path, source: pa.NativeFile | None = None, *, schema: Schema) -> None:
        """Open the file, and the Unischema of its data set."""
        super().__init__(path, fields_beside(path), source)
        self._schema = schema

    @property
    def schema_arrow(self) -> pa.Schema:
        """The types of a training set; a column's own where it can't be cast to that."""
        types = {}
        for field in super().schema_arrow:
            wanted = arrow_type(self._schema, field.name)
            try:
                _cast(pa.array([], field.type), wanted)
                types[field.name] = wanted
            except pa.ArrowException:
                types[field.name] = field.type
        return pa.schema(types)

    def read_row_group(
        self, index: int, columns: Sequence[str], use_threads: bool = False
    ) -> pa.Table:
        """These columns of a row group, decoded and cast.

        Raises:
            DataError: as `PetastormFile`; or a column that can't be cast.
        """
        table = super().read_row_group(index, columns, use_threads)
        where = f"{self._path}, row group {index}"
        cast = {}
        for name in columns:
            wanted = arrow_type(self._schema, name)
            try:
                cast[name] = _cast(table[name], wanted)
            except pa.ArrowException as error:
                hint = "" if self._fields else f"; no Unischema in a {UNISCHEMA_FILE} beside it"
                raise DataError(
                    f"{where}, column {name!r} is {table[name].type}, expected {wanted} "
                    f"({error}){hint}"
                ) from None
        return pa.table(cast)


def _cast(values: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Numbers in another type; NaN becomes null, since petastorm doesn't tell the two apart."""
    if pa.types.is_temporal(values.type):
        raise pa.ArrowTypeError("a time is no number")
    if pa.types.is_floating(values.type) and pa.types.is_integer(wanted):
        _check_exact(values)
    values = values.cast(wanted)
    if not pa.types.is_floating(wanted):
        return values
    return pc.if_else(pc.is_nan(values), None, values)


def _check_exact(floats: pa.Array | pa.ChunkedArray) -> None:
    """Raise ArrowInvalid for floats so large that other integers may have become them."""
    limit = 2.0**53 if pa.types.is_float64(floats.type) else 2.0**24
    large = pc.greater_equal(pc.abs(floats.cast(pa.float64())), limit)
    if pc.any(large, min_count=0).as_py():
        raise pa.ArrowInvalid(f"a {floats.type} isn't exact from {limit:.0f} on")
