"""How a part of a training set is opened: as plain Parquet, or as a file of a Petastorm data set.

Both ways give the same tables; which rows are read, in which order and by whom is decided
elsewhere (`order.py`) and is the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.data.manifest import arrow_type
from infnet_dist.data.petastorm_bridge import load_petastorm
from infnet_dist.data.petastorm_file import UNISCHEMA_FILE, PetastormFile, fields_beside
from infnet_dist.data.ranges import allowed_ranges, bounds
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


OpenPart = Callable[[Path], PartFile]
ARROW: OpenPart = pq.ParquetFile


def part_opener(kind: Literal["arrow", "petastorm"], schema: Schema) -> OpenPart:
    """How to open the parts of a set: `data.reader`.

    Raises:
        DataError: petastorm is wanted and isn't installed.
    """
    if kind == "arrow":
        return ARROW
    load_petastorm()
    return partial(PetastormPart, schema=schema)


def read_group(
    file: PartFile, path: Path, index: int, rows: int, columns: Sequence[str]
) -> pa.Table:
    """These columns of a row group, which must have as many rows as the manifest says.

    Memory is taken by what a footer says, so that is compared first; and what was decoded after,
    since a file may hold less than its footer says.

    Raises:
        DataError: it has another number of rows.
        OSError, pa.ArrowException: it can't be read.
    """
    where = f"{path}, row group {index}"
    told = file.metadata.row_group(index).num_rows if index < file.num_row_groups else None
    if told != rows:
        found = "isn't there" if told is None else f"has {told} rows"
        raise UnreadableError(f"{where} {found}, its manifest says {rows}; ingest again")
    table = file.read_row_group(index, columns=columns, use_threads=False)
    if len(table) != rows or any(len(column) != rows for column in table.columns):
        raise UnreadableError(
            f"{where} holds {len(table)} rows, its footer says {rows}; ingest again"
        )
    return table


class UnreadableError(DataError):
    """A row group can't be read, or isn't what the manifest says."""


class PetastormPart(PetastormFile):
    """A file of a Petastorm data set, in the types of a training set.

    Ids in packed arrays have no statistics in the footer, so they are checked here, as they are
    read.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        """Open the file, and the Unischema of its data set."""
        super().__init__(path, fields_beside(path))
        self._schema = schema
        self._ranges = list(allowed_ranges(schema))

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
        """These columns of a row group, decoded, cast and checked.

        Raises:
            DataError: as `PetastormFile`; or an id or a label out of range.
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
        for allowed in self._ranges:
            if allowed.column in cast:
                mend = "mend the data set, or change its ingest section and ingest again"
                allowed.check(bounds(cast[allowed.column]), where, mend)
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
