"""The seam between a file of rows and the schema's columns.

Today files hold prepared rows: the columns of a training set, with ids as ingest writes them. Rows
of original values will be converted here, by the transforms that are stored with a training set.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.data.manifest import arrow_type, same_type
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.schema import Schema

PREPARED = (
    "predict reads prepared rows, in the columns that infnet ingest writes, and no rows of "
    "original values: ingest these into a training set and use --split"
)


def without_labels(schema: Schema) -> Schema:
    """The schema without what a prediction doesn't need: labels and weights of rows."""
    return schema.model_copy(update={"tasks": (), "weight_column": None})


def needed_columns(schema: Schema) -> list[str]:
    """The columns of the features; `schema` is one `without_labels`.

    The group is a column of the schema, but metrics alone use it.
    """
    without_group = schema.model_copy(update={"group_column": ""})
    return [name for name in without_group.columns if name]


def check_prepared(found: pa.Schema, schema: Schema, name: str) -> None:
    """Check that a file has the columns of the features, each once, of their types.

    Raises:
        DataError: names file, column, and the type that is expected.
    """
    wanted = needed_columns(schema)
    missing = [column for column in wanted if column not in found.names]
    if missing:
        expected = arrow_type(schema, missing[0])
        others = f" and {len(missing) - 1:,} more of {len(wanted):,}" if len(missing) > 1 else ""
        raise DataError(
            f"{name}: {unknown_name('column', missing[0], found.names)}: expected {missing[0]!r} "
            f"({expected}){others}; {PREPARED}"
        )
    for column in wanted:
        if (times := found.names.count(column)) > 1:
            raise DataError(f"{name} has column {column!r} {times} times; remove the others")
        got, expected = found.field(column).type, arrow_type(schema, column)
        if not _is_alike(got, expected):
            raise DataError(f"{name}: column {column!r} is {got}, expected {expected}; {PREPARED}")


def prepare(found: pa.Table, schema: Schema, where: str) -> pa.Table:
    """A row group of a file in the schema's columns and types.

    Integers and floats of other widths are converted; integers exactly, floats to float32. The
    group, which no prediction needs, is 0 unless a feature reads it.

    Args:
        found: columns of a file for which `check_prepared` passed.
        schema: one `without_labels`.
        where: file and row group, for messages.

    Raises:
        DataError: a number doesn't fit into its type; names the column.
    """
    needed = needed_columns(schema)
    columns = {
        name: _converted(found.column(name), arrow_type(schema, name), name, where)
        if name in needed
        else pa.array(np.zeros(len(found), np.int64))
        for name in schema.columns
    }
    return pa.table(columns)


def list_columns(schema: Schema) -> list[str]:
    """Columns of the features that CSV can't hold."""
    names = needed_columns(schema)
    return [name for name in names if pa.types.is_nested(arrow_type(schema, name))]


def from_text(found: pa.Table, types: Iterable[tuple[str, pa.DataType]], where: str) -> pa.Table:
    """Columns of text, as CSV has them, in these types.

    Raises:
        DataError: a text isn't a value of its type; names the column and the text.
    """
    columns = {}
    for name, kind in types:
        try:
            columns[name] = found.column(name).cast(pa.large_utf8()).cast(kind)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{where}: column {name!r}: {' '.join(str(error).split())}, expected {kind}; "
                f"{PREPARED}"
            ) from None
    return pa.table(columns)


def _is_alike(got: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column can be converted: the same kind of number, or lists of it."""
    if same_type(got, expected):
        return True
    if pa.types.is_list(expected) and (pa.types.is_list(got) or pa.types.is_large_list(got)):
        return _is_alike(got.value_type, expected.value_type)
    kinds = (pa.types.is_integer, pa.types.is_floating)
    return any(is_kind(got) and is_kind(expected) for is_kind in kinds)


def _converted(
    column: pa.ChunkedArray, expected: pa.DataType, name: str, where: str
) -> pa.ChunkedArray:
    if same_type(column.type, expected):
        return column
    try:
        exactly = not _is_float(expected)
        return pc.cast(column, expected, safe=exactly)
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: column {name!r}: {reason}, expected {expected}") from None


def _is_float(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind.value_type if pa.types.is_list(kind) else kind))
