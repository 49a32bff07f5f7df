"""Checks types and values of a decoded row group, independently of its footer.

Footer statistics reveal most faults before training (`footers.py`), but they may be missing or
wrong, and a file may change before it is read.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.data.checks.ranges import AllowedRange, allowed_ranges, value_bounds
from infnet_dist.data.manifest import arrow_type, same_type
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema

_FIX = "fix the data or the ingest section, and ingest again"
_UNSIGNED = {1: np.uint8, 8: np.uint64}


def check_types(found: pa.Schema, schema: Schema, where: str) -> None:
    """Check that each column of `schema` exists once, with its type.

    Raises:
        DataError: names the column, the type found and the type expected.
    """
    for name, expected in _types(schema).items():
        places = found.get_all_field_indices(name)
        if not places:
            raise DataError(f"{where} lacks column {name!r} ({expected}); ingest again")
        if len(places) > 1:
            raise DataError(f"{where} has column {name!r} {len(places)} times; ingest again")
        got = found.field(places[0]).type
        if not same_type(got, expected):
            raise DataError(f"{where}: column {name!r} is {got}, expected {expected}; ingest again")


def check_values(columns: Mapping[str, pa.Array], schema: Schema, where: str) -> None:
    """Check ids, items, labels, time gaps, dense features, weights and vectors of a row group.

    Args:
        columns: the columns of `schema`, with its types.
        schema: features and tasks.
        where: file and row group, for messages.

    Raises:
        DataError: names the column and an offending value.
    """
    for allowed in _ranges(schema):
        if not _is_within(columns[allowed.column], allowed):
            allowed.check(value_bounds(columns[allowed.column]), where)
    for feature in schema.dense:
        nullable = feature.boundaries is not None
        check_dense(columns[feature.column], f"{where}, column {feature.column!r}", nullable)
    for name in weight_columns(schema):
        check_weights(columns[name], f"{where}, column {name!r}")
    for vector in schema.vectors:
        _check_vectors(columns[vector.column], f"{where}, column {vector.column!r}")
    for task in schema.tasks:
        if task.truth_column is not None:
            _check_probabilities(columns[task.truth_column], task.truth_column, where)


def check_dense(column: pa.Array | pa.ChunkedArray, where: str, nullable: bool) -> None:
    """Check that a dense column holds finite values.

    Raises:
        DataError: NaN or infinity; or nulls that aren't `nullable`.
    """
    if column.null_count and not nullable:
        raise DataError(
            f"{where}: {column.null_count} nulls, a standardised dense feature must have none; "
            "fill them in ingest"
        )
    found = (column.drop_null() if column.null_count else column).to_numpy()
    finite = np.isfinite(found)
    if not finite.all():
        raise DataError(
            f"{where}: got {found[~finite][0]}, a dense feature must be finite; ingest again"
        )


def weight_columns(schema: Schema) -> list[str]:
    """Columns of weights: of rows, and of the ids of bags."""
    of_rows = [schema.weight_column] if schema.weight_column else []
    return of_rows + [bag.weight_column for bag in schema.bags if bag.weight_column]


def check_weights(column: pa.Array | pa.ChunkedArray, where: str) -> None:
    """Check that weights, or lists of them, are finite, not negative and not null.

    Raises:
        DataError: one isn't.
    """
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    if values.null_count:
        raise DataError(f"{where}: {values.null_count} nulls, a weight can't be null; {_FIX}")
    found = values.to_numpy()
    if len(found) and not 0 <= found.min() <= found.max() < np.inf:
        wrong = ~((found >= 0) & (found < np.inf))
        raise DataError(f"{where}: got {found[wrong][0]}, a weight must be >= 0 and finite; {_FIX}")


def _check_vectors(column: pa.FixedSizeListArray, where: str) -> None:
    """Check that vectors are null as a whole or have finite values."""
    values = column.flatten()  # without those of null vectors
    if values.null_count:
        raise DataError(
            f"{where}: {values.null_count} nulls within vectors, only whole vectors may be null; "
            f"{_FIX}"
        )
    found = values.to_numpy()
    if len(found) and not -np.inf < found.min() <= found.max() < np.inf:
        wrong = ~np.isfinite(found)
        raise DataError(f"{where}: got {found[wrong][0]}, a vector must be finite; {_FIX}")


def _is_within(column: pa.Array, allowed: AllowedRange) -> bool:
    """Whether all integers of a column, or all items of its lists, are in range; in one pass.

    All bounded ranges start at 0, so one comparison as unsigned integers checks both ends.
    """
    values = column.flatten() if pa.types.is_list(column.type) else column
    if values.null_count:
        if not allowed.nullable:
            return False
        values = values.drop_null()
    if allowed.is_any or not len(values):
        return True
    assert allowed.low == 0, "a negative lower end needs another comparison"
    integers: npt.NDArray[np.int64] = values.to_numpy()
    return int(integers.view(_UNSIGNED[integers.itemsize]).max()) <= allowed.high


def _check_probabilities(column: pa.Array, name: str, where: str) -> None:
    """Check that probabilities are in [0, 1]; NaN and null mean unknown."""
    values = column.to_numpy(zero_copy_only=False)
    wrong = (values < 0) | (values > 1)
    if wrong.any():
        raise DataError(
            f"{where}, column {name!r}: got {values[wrong][0]}, a probability must be in [0, 1]; "
            "ingest again"
        )


@lru_cache(maxsize=16)
def _types(schema: Schema) -> dict[str, pa.DataType]:
    return {column: arrow_type(schema, column) for column in schema.columns}


@lru_cache(maxsize=16)
def _ranges(schema: Schema) -> tuple[AllowedRange, ...]:
    return tuple(allowed_ranges(schema))
