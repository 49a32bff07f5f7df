"""Conversions of times to epoch milliseconds, rounded down, in arithmetic that can't overflow."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.features.numbers import (
    DAY_MS,
    EARLIEST_MS,
    FAR_MS,
    LATEST_MS,
    PER_S,
    to_milliseconds,
)
from infnet_dist.ingest.convert.arrays import (
    Mask,
    UnfitColumnError,
    family,
    mask,
    only,
    utf8,
    without_null_words,
)
from infnet_dist.ingest.convert.ids import to_integers

_NUMBER = r"^[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?$"
_ISO = (
    r"^(?P<day>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<clock>\d{2}:\d{2}(?::\d{2})?)(?:[.,](?P<fraction>\d{1,18}))?"
    r" ?(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)
IntArray = npt.NDArray[np.int64]


def to_times(values: pa.Array, unit: str) -> tuple[pa.Array, Mask]:
    """int64 epoch milliseconds, null where a value isn't a time; and the mask of those.

    Args:
        values: timestamps and dates (without a zone: UTC), numbers, or texts of numbers or of ISO
            8601.
        unit: unit of numbers: s, ms, us or ns.

    Raises:
        UnfitColumnError: the float type is too small for times.
    """
    nothing = np.zeros(len(values), bool)
    kind = family(values.type)
    if kind == "timestamp":
        return _scaled(values.cast(pa.int64()), values.type.unit), nothing
    if kind == "date":
        if pa.types.is_date64(values.type):
            return values.cast(pa.int64()), nothing
        days = values.cast(pa.int32()).cast(pa.int64())
        return pc.multiply(days, DAY_MS), nothing
    if kind == "text":
        return _of_texts(values, unit)
    if kind == "float" and not pa.types.is_float64(values.type):
        raise UnfitColumnError(f"is {values.type}, too small for times; write float64 or int64")
    if kind == "float" or (kind == "decimal" and values.type.scale > 0):
        return _of_floats(values.cast(pa.float64()), unit)
    integers, unfit = to_integers(values)
    if pa.types.is_uint64(values.type):  # the upper half of uint64 has become negative
        integers = pc.if_else(pc.less(integers, 0), FAR_MS, integers)
    return _scaled(integers, unit), unfit


def fits_as(times_ms: IntArray, unit: str) -> dict[str, Mask]:
    """By other unit, the mask of times that would be between 1990 and 2100 in that unit."""
    return {
        other: (scaled >= EARLIEST_MS) & (scaled < LATEST_MS)
        for other, per_s in PER_S.items()
        if other != unit
        for scaled in [times_ms.astype(np.float64) * (PER_S[unit] / per_s)]
    }


def _scaled(values: pa.Array, unit: str) -> pa.Array:
    """Integers of a unit as milliseconds, rounded down; too large values stay out of range."""
    scaled = to_milliseconds(pc.fill_null(values, 0).to_numpy(), unit)
    return pa.array(scaled, mask=mask(pc.is_null(values)))


def _of_floats(values: pa.Array, unit: str) -> tuple[pa.Array, Mask]:
    """Round to microseconds first: 1.001 s is 1,001 ms, though the float is slightly less."""
    floats = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
    micros = np.round(floats * (1_000_000 / PER_S[unit]))
    null, unfit = np.isnan(floats), np.isinf(floats)
    bound = float(FAR_MS // 1_000)
    whole = np.clip(np.where(null | unfit, 0, micros), -bound, bound).astype(np.int64) // 1_000
    # Clipped values are still out of range: 2**62 // 1,000 us is the year 148,000.
    return pa.array(whole, mask=null | unfit), unfit


def _of_texts(values: pa.Array, unit: str) -> tuple[pa.Array, Mask]:
    texts, broken = utf8(values)
    texts = without_null_words(texts)
    known = mask(pc.is_valid(texts))
    whole = mask(pc.match_substring_regex(texts, r"^[+-]?\d{1,18}$"))
    integers, _ = to_integers(only(texts, whole))
    times = _scaled(integers, unit)
    floating = ~whole & mask(pc.match_substring_regex(texts, _NUMBER))
    if floating.any():
        times = pc.coalesce(times, _of_floats(only(texts, floating).cast(pa.float64()), unit)[0])
    written = known & ~whole & ~floating
    if written.any():
        times = pc.coalesce(times, _of_iso(only(texts, written)))
    return times, broken | (known & mask(pc.is_null(times)))


def _of_iso(texts: pa.Array) -> pa.Array:
    """Days and times of ISO 8601 as epoch ms, null where invalid; UTC without a zone."""
    fields = pc.extract_regex(texts, _ISO)
    found = mask(pc.is_valid(fields))
    parts = dict(zip(("day", "clock", "fraction", "zone"), _named(fields), strict=True))
    clock = pc.if_else(pc.equal(parts["clock"], ""), "00:00", parts["clock"])
    clock = pc.if_else(pc.equal(pc.utf8_length(clock), 5), _join(clock, ":00"), clock)
    moments = only(_join(parts["day"], "T", clock), found)
    pattern = "%Y-%m-%dT%H:%M:%S"
    parsed = pc.strptime(moments, format=pattern, unit="s", error_is_null=True)
    # strptime reads February 30 as March 2, and 12:00:60 as 12:01:00.
    same = mask(pc.equal(pc.strftime(parsed, format=pattern).cast(moments.type), moments))
    seconds = parsed.cast(pa.int64()).fill_null(0).to_numpy()
    fraction = pc.utf8_slice_codeunits(_join(parts["fraction"], "000"), 0, 3)
    millis = pc.if_else(pa.array(found), fraction, "0").cast(pa.int64()).to_numpy()
    offset_s, exists = _offsets(parts["zone"])
    return pa.array((seconds - offset_s) * 1_000 + millis, mask=~(found & same & exists))


def _named(fields: pa.StructArray) -> list[pa.Array]:
    """The named groups of the pattern, "" for a missing one."""
    return [
        pc.fill_null(pc.struct_field(fields, name), "")
        for name in ("day", "clock", "fraction", "zone")
    ]


def _join(*texts: pa.Array | str) -> pa.Array:
    parts = [pa.scalar(t, pa.large_string()) if isinstance(t, str) else t for t in (*texts, "")]
    return pc.binary_join_element_wise(*parts)


def _offsets(zones: pa.Array) -> tuple[IntArray, Mask]:
    """Offsets of zones from UTC in seconds, and whether such a zone exists (up to 18 h)."""
    digits = pc.replace_substring_regex(zones, r"[^0-9]", "")
    digits = pc.utf8_slice_codeunits(_join(digits, "0000"), 0, 4).cast(pa.int64()).to_numpy()
    sign = np.where(mask(pc.starts_with(zones, "-")), -1, 1)
    hours, minutes = digits // 100, digits % 100
    return sign * (hours * 3_600 + minutes * 60), (hours <= 18) & (minutes < 60)
