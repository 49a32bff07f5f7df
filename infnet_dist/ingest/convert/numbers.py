"""Conversions of numbers and texts to floats, labels and durations."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.ingest.convert.arrays import Mask, family, mask, only, utf8, without_null_words

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
TRUE_WORDS, FALSE_WORDS = ("1", "true", "t", "yes", "y"), ("0", "false", "f", "no", "n")
_EXACT = 2.0**53
FloatArray = npt.NDArray[np.float64]


def to_floats(values: pa.Array) -> tuple[FloatArray, Mask]:
    """float64, NaN for null; and the mask of values that aren't numbers. Keeps infinity."""
    unfit = np.zeros(len(values), bool)
    if family(values.type) == "text":
        texts, broken = utf8(values)
        texts = pc.utf8_lower(without_null_words(texts))
        words = pc.index_in(texts, pa.array(["false", "true"], texts.type)).cast(pa.float64())
        number = mask(pc.match_substring_regex(texts, _NUMBER))
        values = pc.coalesce(only(texts, number).cast(pa.float64()), words)
        unfit = broken | (mask(pc.is_valid(texts)) & mask(pc.is_null(values)))
    elif family(values.type) == "bool":
        values = values.cast(pa.int8())
    floats = pc.fill_null(values.cast(pa.float64(), safe=False), np.nan)
    return floats.to_numpy(zero_copy_only=False), unfit


def to_finite_floats(values: pa.Array) -> tuple[pa.Array, Mask]:
    """float64, null for NaN and invalid values; and the mask of those that float32 can't have."""
    floats, unfit = to_floats(values)
    with np.errstate(over="ignore"):
        unfit = unfit | np.isinf(floats.astype(np.float32))
    return pa.array(floats, mask=np.isnan(floats) | unfit), unfit


def to_float32(values: pa.Array) -> tuple[pa.Array, Mask]:
    """float32, null for NaN and invalid values; and the mask of those that float32 can't have."""
    if family(values.type) == "float" and values.type.bit_width <= 32:  # many: without copies
        values = values.cast(pa.float32())
        unfit = mask(pc.is_inf(values))
        null = unfit | mask(pc.is_nan(values))
        return (only(values, ~null) if null.any() else values), unfit
    floats, unfit = to_finite_floats(values)
    return floats.cast(pa.float32()), unfit


def to_flags(values: pa.Array) -> tuple[pa.Array, Mask]:
    """int8 of 0 and 1, null where a value is neither; and the mask of those."""
    if family(values.type) == "text":
        texts, broken = utf8(values)
        texts = pc.utf8_lower(without_null_words(texts))
        true = pc.is_in(texts, pa.array(TRUE_WORDS, texts.type))
        false = pc.is_in(texts, pa.array(FALSE_WORDS, texts.type))
        word = mask(pc.or_(true, false))
        floats, unfit = to_floats(only(texts, ~word))
        floats = np.where(word, mask(true), floats)
        unfit = broken | unfit
    else:
        floats, unfit = to_floats(values)
    unfit = unfit | (~np.isnan(floats) & (floats != 0) & (floats != 1))
    null = np.isnan(floats) | unfit
    return pa.array(np.where(null, 0, floats).astype(np.int8), mask=null), unfit


def to_milliseconds(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Durations as int64, rounded; null where invalid or beyond 2**53; and the mask of those."""
    floats, unfit = to_floats(values)
    with np.errstate(invalid="ignore"):
        unfit = unfit | (np.abs(floats) >= _EXACT)
    null = np.isnan(floats) | unfit
    return pa.array(np.round(np.where(null, 0, floats)).astype(np.int64), mask=null), unfit
