"""Transforms of numbers and times: buckets, standardisation, counts, gaps, cutoffs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
NUM_TIME_GAP_BUCKETS = 32
EARLIEST_MS, LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100
PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Times beyond it are out of range anyway; it bounds products with 1,000 and 86,400,000.
FAR_MS = 2**62
DAY_MS = 86_400_000
# Buckets of counts: 0, 1, 2, 3-4, 5-8, ... Boundaries are between two integers.
COUNT_BOUNDARIES = tuple([0.5, 1.5] + [2.0**i + 0.5 for i in range(1, 21)])


def fits_float32(values: npt.NDArray[np.float64]) -> BoolArray:
    """Whether float32 can represent each value, rounded; NaN, which means null, fits."""
    with np.errstate(over="ignore"):
        return ~np.isinf(values.astype(np.float32))


def bucketise(values: npt.NDArray[Any], boundaries: Sequence[float]) -> IntArray:
    """Ids of float32 numbers: 0 for NaN, 1 + i where boundaries[i - 1] <= value < boundaries[i]."""
    buckets = 1 + np.searchsorted(np.asarray(boundaries, np.float64), values, side="right")
    return np.where(np.isnan(values), 0, buckets).astype(np.int64)


def standardise(values: FloatArray, mean: float, std: float) -> FloatArray:
    """(value - mean) / std, in float32."""
    return (values - np.float32(mean)) / np.float32(std)


def gap_seconds(times_ms: IntArray, event_times_ms: IntArray) -> IntArray:
    """Seconds from an event to a row, rounded down, at least 1."""
    return np.maximum((times_ms - event_times_ms) // 1000, 1)


def time_gap_buckets(gap_s: IntArray) -> IntArray:
    """Powers of two of a gap in seconds: 1 for 1 s, 2 for 2-3 s, 3 for 4-7 s, ...; at most 31."""
    exponents = np.frexp(np.maximum(gap_s, 1).astype(np.float64))[1]  # 2 for 2 and 3, ...
    return np.minimum(exponents, NUM_TIME_GAP_BUCKETS - 1).astype(np.int64)


def to_milliseconds(times: IntArray, unit: str) -> IntArray:
    """Times in s, ms, us or ns as milliseconds, rounded down; too large ones stay out of range."""
    if unit == "s":
        return np.clip(times, -(FAR_MS // 1_000), FAR_MS // 1_000) * 1_000
    return times // (PER_S[unit] // 1_000)


def known_until(times_ms: IntArray, *, daily: bool, offset_ms: int) -> IntArray:
    """Cutoffs of rows with these times: they see only events strictly before.

    Args:
        times_ms: int64 [n].
        daily: up to the last midnight, otherwise up to the row itself.
        offset_ms: local time minus UTC.
    """
    if not daily:
        return times_ms
    return (times_ms + offset_ms) // DAY_MS * DAY_MS - offset_ms
