"""The rows of an input, in row groups: what all kinds of input have in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from infnet_dist.config.limits import MAX_GROUP_ROWS
from infnet_dist.errors import DataError, unknown_name


class InputFile(NamedTuple):
    """A file of an input.

    Attributes:
        name: relative to the input's folder.
        fingerprint: differs for other rows.
        row_groups: number of rows of each row group that are predicted.
    """

    name: str
    fingerprint: str
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return sum(self.row_groups)


class InputGroup(NamedTuple):
    """A row group of an input: number of its file, its number there, and its number of rows."""

    file: int
    number: int
    rows: int


class InputRows(NamedTuple):
    """The rows of a row group.

    Attributes:
        features: the columns of a schema, in its types.
        keys: the key columns.
        numbers: int64, number of each row in its file, from 0.
    """

    features: pa.Table
    keys: pa.Table
    numbers: pa.Array


class Source(Protocol):
    """An input; picklable, so that each worker reads its share."""

    @property
    def place(self) -> str:
        """The input as it was named, without secrets."""

    @property
    def files(self) -> tuple[InputFile, ...]:
        """Its files, in the order of the rows."""

    @property
    def key_types(self) -> dict[str, pa.DataType]:
        """Types of the key columns, the same in all files."""

    @property
    def advice(self) -> str:
        """The end of messages about values that the schema doesn't allow."""

    def read(self, groups: Iterable[InputGroup]) -> Iterator[InputRows]:
        """The rows of these row groups, which are in the order of the input.

        A file is opened once for consecutive ones.

        Raises:
            DataError: a file has changed or can't be read; names file and row group.
        """


def group_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of row groups as a footer gives them, checked, since memory is allocated by them.

    Raises:
        DataError: one is too large.
    """
    for index, rows in enumerate(sizes):
        if not 0 <= rows <= MAX_GROUP_ROWS:
            raise DataError(
                f"{name}, row group {index}: {rows} rows, at most {MAX_GROUP_ROWS}; rewrite the "
                "file with smaller row groups"
            )
    return tuple(sizes)


def types_of_keys(found: pa.Schema, keys: Sequence[str], name: str) -> dict[str, pa.DataType]:
    """Types of the key columns of a file; dictionaries count as their values.

    Raises:
        DataError: the file lacks a column, or has it twice.
    """
    types = {}
    for key in keys:
        places = found.get_all_field_indices(key)
        if not places:
            raise DataError(f"--keys: {name}: {unknown_name('column', key, found.names)}")
        if len(places) > 1:
            raise DataError(f"--keys: {name} has {len(places)} columns {key!r}; rename one")
        kind = found.field(places[0]).type
        types[key] = kind.value_type if pa.types.is_dictionary(kind) else kind
    return types


def check_same_types(
    first: dict[str, pa.DataType], other: dict[str, pa.DataType], name: str
) -> None:
    """Check that a file's key columns have the types of the first file's.

    Raises:
        DataError: names file, column and types.
    """
    for key, kind in other.items():
        if kind != first[key]:
            raise DataError(
                f"--keys: {name}: column {key!r} is {kind}, expected {first[key]} as in the first "
                "file; write all files with one type"
            )


def key_columns(found: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The key columns of a table in these types."""
    columns = {name: found.column(name).cast(kind) for name, kind in types.items()}
    return pa.table(columns) if columns else found.select([])
