"""Transforms of numbers: buckets, standardisation, counts, time gaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
NUM_TIME_GAP_BUCKETS = 32
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
