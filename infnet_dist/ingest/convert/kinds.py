"""Kinds of columns, with the Arrow types and values that each accepts.

| kind        | result     | Arrow types                                | values                |
|-------------|------------|--------------------------------------------|-----------------------|
| int         | int64      | integers, floats, decimals, bool, text     | exact 64-bit integers |
| text        | text       | text, integers, floats, decimals           | UTF-8; exact integers |
| ints, texts | list of it | lists of any layout, text with a separator | as above, no null     |
| float       | float64    | integers, floats, decimals, bool, text     | finite in float32     |
| floats      | list of    | lists of any layout, text with a separator | finite in float32,    |
|             | float32    |                                            | no null               |
| flag        | int8       | the same                                   | 0, 1, truth words     |
| watch_time  | int64 ms   | integers, floats, decimals, text           | below 2**53, rounded  |
| time        | int64 ms   | timestamps, dates, integers, float64,      | any; `clean` tests    |
|             |            | decimals, text                             | the range             |
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.features.definition import RawType
from infnet_dist.ingest.convert.arrays import (
    Mask,
    UnfitColumnError,
    family,
    list_items,
    mask,
    only,
    plain,
    utf8,
    without_null_words,
)
from infnet_dist.ingest.convert.ids import to_integers, to_texts
from infnet_dist.ingest.convert.numbers import (
    to_finite_floats,
    to_flags,
    to_float32,
    to_milliseconds,
)
from infnet_dist.ingest.convert.times import to_times

Kind = Literal["time", "int", "text", "ints", "texts", "float", "floats", "flag", "watch_time"]

TYPES: dict[str, pa.DataType] = {
    "time": pa.int64(),
    "int": pa.int64(),
    "text": pa.large_string(),
    "ints": pa.list_(pa.int64()),
    "texts": pa.list_(pa.large_string()),
    "float": pa.float64(),
    "floats": pa.list_(pa.float32()),
    "flag": pa.int8(),
    "watch_time": pa.int64(),
}
# Types of converted values, when they are given to `features`.
RAW_TYPES: dict[Kind, RawType] = {
    "int": "integer",
    "text": "text",
    "ints": "integers",
    "texts": "texts",
    "float": "float",
    "floats": "floats",
    "flag": "flag",
    "time": "integer",
    "watch_time": "integer",
}
EXPECTED: dict[str, str] = {
    "time": "a time (a timestamp, a date, a number, or text of a number or of ISO 8601)",
    "int": "an integer of 64 bits",
    "text": "text",
    "ints": "a list of integers",
    "texts": "a list of texts",
    "float": "a finite number of float32",
    "floats": "a list of finite numbers of float32",
    "flag": "0 or 1",
    "watch_time": "milliseconds",
}
ITEMS: dict[str, str] = {"ints": "int", "texts": "text", "floats": "float"}  # kinds of lists
_NUMERIC = frozenset({"integer", "float", "decimal"})
_ACCEPTED: dict[str, frozenset[str]] = {
    "int": _NUMERIC | {"bool", "text"},
    "text": _NUMERIC | {"text"},
    "ints": frozenset({"list", "text"}),
    "texts": frozenset({"list", "text"}),
    "float": _NUMERIC | {"bool", "text"},
    "floats": frozenset({"list", "text"}),
    "flag": _NUMERIC | {"bool", "text"},
    "watch_time": _NUMERIC | {"text"},
    "time": _NUMERIC | {"timestamp", "date", "text"},
}
_CONVERT = {
    "text": to_texts,
    "float": to_finite_floats,
    "flag": to_flags,
    "watch_time": to_milliseconds,
}


def convert(
    column: pa.Array | pa.ChunkedArray,
    kind: Kind,
    *,
    time_unit: str = "ms",
    separator: str = "|",
    zeros: bool = True,
) -> tuple[pa.Array, Mask]:
    """Convert a column to a kind: values, null where one is invalid; and the mask of those.

    The result for a value depends only on the value and the type of the column.

    Args:
        column: a column of any Arrow type.
        kind: the kind to convert to.
        time_unit: unit of times that are numbers.
        separator: separator between the items of lists that are text.
        zeros: whether the text 007 is the integer 7; otherwise it is invalid.

    Raises:
        UnfitColumnError: the kind doesn't accept the type of the column, or floats aren't exact.
    """
    found = column.type
    if not accepts(kind, found):
        raise UnfitColumnError(f"is {found}, expected {EXPECTED[kind]}")
    is_null = family(found) == "null"
    values = pa.nulls(len(column), TYPES[kind]) if is_null else plain(column)
    if kind == "time":
        return to_times(values, time_unit)
    if kind in ITEMS:
        return _lists(values, kind, separator, zeros)
    if kind == "int":
        return to_integers(values, zeros)
    return _CONVERT[kind](values)


def accepts(kind: str, found: pa.DataType) -> bool:
    """Whether a kind accepts values of an Arrow type."""
    what = family(found)
    if kind in ITEMS and what == "list":
        items = found.storage_type if isinstance(found, pa.BaseExtensionType) else found
        item = family(items.value_type)
        return item == "null" or item in _ACCEPTED[ITEMS[kind]]
    return what == "null" or what in _ACCEPTED[kind]


def _lists(values: pa.Array, kind: Kind, separator: str, zeros: bool) -> tuple[pa.Array, Mask]:
    """Lists, and the mask of rows with invalid items."""
    unfit = np.zeros(len(values), bool)
    if family(values.type) == "text":
        values, unfit = _split(values, separator)
    items, lengths = list_items(values)
    try:
        converted, bad = _items(items, kind, zeros)
    except UnfitColumnError as error:
        row = None if error.row is None else int(_row_of(error.row, lengths))
        raise UnfitColumnError(error.why, row) from None
    bad = bad | mask(pc.is_null(converted))
    unfit[_row_of(np.flatnonzero(bad), lengths)] = True
    return _as_lists(converted, lengths, mask(pc.is_null(values))), unfit


def _items(items: pa.Array, kind: Kind, zeros: bool) -> tuple[pa.Array, Mask]:
    if kind != "floats":
        return convert(items, "int" if kind == "ints" else "text", zeros=zeros)
    if family(items.type) == "null":
        return pa.nulls(len(items), pa.float32()), np.zeros(len(items), bool)
    return to_float32(plain(items))


def _row_of(items: Any, lengths: npt.NDArray[np.int64]) -> Any:
    """The rows of items with these numbers."""
    return np.searchsorted(np.cumsum(lengths), items, side="right")


def _split(values: pa.Array, separator: str) -> tuple[pa.Array, Mask]:
    """Split texts at the separator; an empty text is an empty list, [1, 2] is invalid."""
    texts, unfit = utf8(values)
    texts = without_null_words(texts)
    unfit = unfit | mask(pc.match_substring_regex(texts, r"^[\[({].*[\])}]$"))
    lists = pc.split_pattern(only(texts, ~unfit), separator)
    items, lengths = list_items(lists)
    return _as_lists(without_null_words(items), lengths, mask(pc.is_null(lists))), unfit


def _as_lists(items: pa.Array, lengths: npt.NDArray[np.int64], null: Mask) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    nulls = pa.array(null) if null.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=nulls)
