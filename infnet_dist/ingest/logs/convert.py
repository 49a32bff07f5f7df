"""Columns of any type -> the types of good rows, value by value: what doesn't fit is told apart."""

from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["time", "int", "text", "ints", "texts", "number", "flag", "watch_time"]
Mask = npt.NDArray[np.bool_]

TYPES: dict[str, pa.DataType] = {
    "time": pa.int64(),
    "int": pa.int64(),
    "text": pa.large_string(),
    "ints": pa.list_(pa.int64()),
    "texts": pa.list_(pa.large_string()),
    "number": pa.float64(),
    "flag": pa.int8(),
    "watch_time": pa.int64(),
}
_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}  # units of a millisecond; seconds are longer
EARLIEST_MS, LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100
_INTEGER = r"^\s*[+-]?\d{1,19}\s*$"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def typed(column: pa.ChunkedArray, kind: Kind, time_unit: str) -> tuple[pa.Array, Mask]:
    """The column in the type of a kind, null where a value doesn't fit, and which those are.

    Raises:
        pa.ArrowException, NotImplementedError: no value of the column's type could fit.
    """
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    found = plain_type(values.type)
    values = values.cast(found) if values.type != found else values
    if kind == "time":
        return _times(values, time_unit)
    if kind in ("ints", "texts"):
        return _lists(values, TYPES[kind])
    if kind == "watch_time":
        return _whole(*_plain(values, pa.float64()))
    return _plain(values, TYPES[kind])


def time_in_ms(value: int | datetime | None, unit: str) -> int:
    """A time of a footer as epoch ms; -1 if it doesn't tell, or is no time that rows may have."""
    if value is None:
        return -1
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        time_ms = int(moment.timestamp() * 1000)
    else:
        time_ms = value * 1_000 if unit == "s" else value // _PER_MS[unit]
    return time_ms if EARLIEST_MS <= time_ms < LATEST_MS else -1


def _times(values: pa.Array, unit: str) -> tuple[pa.Array, Mask]:
    """Epoch milliseconds, rounded down, of timestamps, integers or texts of integers."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        moments = values.cast(pa.timestamp("ns", "UTC"), safe=False).cast(pa.int64())
        return pc.floor(pc.divide(moments, 1_000_000)).cast(pa.int64()), np.zeros(len(values), bool)
    whole, unfit = _plain(values, pa.int64())
    if unit == "s":
        # What overflows is far beyond 2100 as well.
        seconds = pc.min_element_wise(pc.max_element_wise(whole, -1), 1 << 40, skip_nulls=False)
        return pc.multiply(seconds, 1_000), unfit
    return pc.divide(whole, _PER_MS[unit]), unfit


def _lists(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask]:
    """Lists of `kind`, with the rows whose items don't fit; a null list is an empty one."""
    if not is_list(values.type):
        raise pa.ArrowTypeError("no list")
    if values.null_count:  # which may hide items
        values = values.take(pa.array(np.arange(len(values))))
    parents = pc.list_parent_indices(values).to_numpy()
    items, bad_items = _plain(values.flatten(), kind.value_type)
    unfit = np.zeros(len(values), bool)
    unfit[parents[bad_items | mask(pc.is_null(items))]] = True
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items), unfit


def _plain(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask]:
    """Values of `kind`, null where one doesn't fit, and which those are. NaN is null."""
    if is_list(values.type):
        raise pa.ArrowTypeError("a list")
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if is_string(kind):
        return _utf8(values.cast(kind))
    if is_string(values.type):
        values, unfit = _utf8(values.cast(pa.large_string()))
        pattern = _NUMBER if pa.types.is_floating(kind) else _INTEGER
        fits = pc.fill_null(pc.match_substring_regex(values, pattern), True)
        texts = pc.if_else(fits, values, pa.scalar(None, values.type))
        texts = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"^\+", "")
        parsed, too_large = _plain(texts.cast(_parsed(kind)), kind)
        return parsed, unfit | too_large | ~mask(fits)
    if pa.types.is_floating(kind):
        return values.cast(kind, safe=False), np.zeros(len(values), bool)
    return _integers(values, kind)


def _utf8(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Texts, null where the bytes aren't UTF-8, and which those are."""
    try:
        values.validate(full=True)
        return values, np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        unfit = np.array([not _is_utf8(v.as_py()) for v in values.cast(pa.large_binary())])
        return pc.if_else(pa.array(~unfit), values, pa.scalar(None, values.type)), unfit


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _whole(numbers: pa.Array, unfit: Mask) -> tuple[pa.Array, Mask]:
    """Rounded to int64, null where too large for that."""
    fits = pc.fill_null(pc.less(pc.abs(numbers), 2.0**53), True)
    kept = pc.if_else(fits, numbers, pa.scalar(None, pa.float64()))
    return pc.round(kept).cast(pa.int64()), unfit | ~mask(fits)


def _integers(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask]:
    try:
        return values.cast(kind), np.zeros(len(values), bool)
    except pa.ArrowInvalid:  # some values are too large, or have a fraction
        low, high = (-128, 127) if kind == pa.int8() else (-(2**63), 2**63 - 1)
        if pa.types.is_uint64(values.type) and kind == pa.int64():
            return values.view(kind), np.zeros(len(values), bool)  # hashes: the same bits
        if pa.types.is_integer(values.type) or pa.types.is_decimal(values.type):
            bounds = pa.array([low, high], pa.int64()).cast(pa.decimal128(19, 0))
            numbers = values.cast(pa.decimal128(38, 0))
            fits = pc.and_(pc.greater_equal(numbers, bounds[0]), pc.less_equal(numbers, bounds[1]))
        else:
            numbers = values.cast(pa.float64(), safe=False)
            inside = pc.less(pc.abs(numbers), float(min(high, 2**53)))  # beyond: no exact integer
            fits = pc.and_(inside, pc.equal(numbers, pc.floor(numbers)))
        fits = pc.fill_null(fits, True)
        kept = pc.if_else(fits, values, pa.scalar(None, values.type))
        return kept.cast(kind), ~mask(fits)


def _parsed(kind: pa.DataType) -> pa.DataType:
    """What texts are parsed as first."""
    return pa.float64() if pa.types.is_floating(kind) else pa.decimal128(38, 0)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionary, views and large offsets of lists."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def is_string(kind: pa.DataType) -> bool:
    """Whether it is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether it is lists of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def mask(values: pa.Array) -> Mask:
    """A bool array of Arrow as numpy's, null as False."""
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)
