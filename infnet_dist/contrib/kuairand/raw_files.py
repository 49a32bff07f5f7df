"""Reads columns of raw CSV or Parquet files in given types; errors are one line."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from infnet_dist.errors import DataError
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.ingest.convert.arrays import NULL_WORDS, UnfitColumnError, mask, shown
from infnet_dist.ingest.convert.kinds import EXPECTED, Kind, convert

Columns = dict[str, pa.DataType]
_MAX_TIME_MS = 1 << 43  # HistoryBuilder packs times into 43 bits
_KINDS: dict[pa.DataType, Kind] = {
    pa.int64(): "int",
    pa.float64(): "float",
    pa.string(): "text",
    pa.list_(pa.int64()): "ints",
}


def read_columns(path: Path, columns: Columns) -> pa.Table:
    """These columns of a `.csv` or `.parquet` file, in this order and with these types.

    int64 columns (ids, times) must have no nulls; in float64 columns NaN becomes null.

    Raises:
        DataError: the file is unreadable, lacks a column, or has values of another type.
    """
    try:
        table = _read_csv(path, columns) if path.suffix == ".csv" else _read_parquet(path, columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} can't be read ({reason}); fetch or export it again") from None
    found = {name: _converted(table[name], name, kind, path) for name, kind in columns.items()}
    table = pa.table(found)
    for name, kind in columns.items():
        if kind == pa.int64():
            _check_complete(table, name, path)
    return table


def _converted(column: pa.ChunkedArray, name: str, kind: pa.DataType, path: Path) -> pa.Array:
    """Convert a column exactly.

    Raises:
        DataError: a value is invalid.
    """
    try:
        values, unfit = convert(column, _KINDS[kind])
    except UnfitColumnError as error:
        raise DataError(f"{error.at(name, path)}; convert the column") from None
    if unfit.any():
        row = int(unfit.argmax())
        raise DataError(
            f"{path}: column {name} is {shown(column[row])} in row {row} (from 0), expected "
            f"{EXPECTED[_KINDS[kind]]}; repair or remove the row"
        )
    return values.cast(kind)


def check_flags(table: pa.Table, names: Iterable[str], path: Path) -> pa.Table:
    """Convert columns to int8; DataError names the first value other than 0 and 1."""
    for name in names:
        flags, unfit = convert(table[name], "flag")
        bad = unfit | mask(pc.is_null(flags))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{path}: column {name} is {shown(table[name][row])} in row {row} (from 0), "
                "expected 0 or 1; repair or remove the row"
            )
        table = table.set_column(table.column_names.index(name), name, flags)
    return table


def check_unique(table: pa.Table, key: str, path: Path) -> pa.Table:
    """Return the table; DataError if a key appears twice, as a join would duplicate rows."""
    values, counts = np.unique(table[key].to_numpy(), return_counts=True)
    if np.any(counts > 1):
        raise DataError(
            f"{path}: {key} {values[counts > 1][0]} appears in {counts[counts > 1][0]} rows, "
            f"expected one row per {key}; remove the others"
        )
    return table


def _read_csv(path: Path, columns: Columns) -> pa.Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    _check_present(header, columns, path)
    options = pyarrow.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=columns,
        null_values=list(NULL_WORDS),
        strings_can_be_null=True,
    )
    layout = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(path, parse_options=layout, convert_options=options)


def _read_parquet(path: Path, columns: Columns) -> pa.Table:
    found = pq.read_schema(path)
    _check_present(found.names, columns, path)
    return pq.read_table(path, columns=list(columns))


def _check_present(found: list[str], columns: Columns, path: Path) -> None:
    missing = [name for name in columns if name not in found]
    if missing:
        raise DataError(
            f"{path} lacks column {', '.join(missing)}; it has {', '.join(found) or 'none'}: "
            "add the column or fetch the file again"
        )
    check_columns(found, columns, str(path))


def _check_complete(table: pa.Table, name: str, path: Path) -> None:
    column = table[name]
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(
            f"{path}: column {name} is empty in row {row} (from 0), expected an integer; "
            "repair or remove the row"
        )
    if not name.endswith("time_ms"):
        return
    bad = pc.or_(pc.less(column, 0), pc.greater_equal(column, _MAX_TIME_MS))
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise DataError(
            f"{path}: column {name} is {column[row]} in row {row} (from 0), expected milliseconds "
            "since 1970; repair or remove the row"
        )
