"""Conversions to ids: exact 64-bit integers, or texts. Numbers become the text of their integer."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.ingest.convert.arrays import (
    Mask,
    UnfitColumnError,
    family,
    mask,
    only,
    utf8,
    without_null_words,
)

_INTEGER = r"^[+-]?\d+$"
_MAYBE_64_BITS = r"^[+-]?\d{1,38}$"  # as many as a decimal can have
_ZEROS = r"^[+-]?0\d"
_SHORT_INTEGER = r"^-?\d{1,18}$"  # always fits int64
_FLOAT = r"^[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?$"
# The canonical text of an integer, and other spellings; 007 is neither: it may be a code.
PLAIN_INTEGER = r"^(0|-?[1-9]\d{0,18}|1\d{19})$"
_OTHER_SPELLING = r"^\s*[+-]?(0|[1-9]\d*)((\.0*)?|(\.\d*)?[eE][+-]?\d+)\s*$"
_MANTISSA = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}  # bits
_DECIMAL = pa.decimal128(38, 0)


def to_integers(values: pa.Array, zeros: bool = True) -> tuple[pa.Array, Mask]:
    """int64, null where a value isn't an integer of 64 bits, and the mask of those; NaN is null.

    Integers from 2**63 on keep their bits: hashes use all 64.

    Args:
        values: integers, floats, decimals, bool or text.
        zeros: whether the text 007 is 7; otherwise it isn't an integer.

    Raises:
        UnfitColumnError: floats are too large to be exact: another id may have the same float.
    """
    kind = family(values.type)
    if kind == "text":
        return _of_texts(values, zeros)
    if kind == "float":
        return _of_floats(values)
    if kind == "decimal":
        return _of_decimals(values)
    if pa.types.is_uint64(values.type):
        return values.view(pa.int64()), np.zeros(len(values), bool)
    return values.cast(pa.int64()), np.zeros(len(values), bool)


def to_texts(values: pa.Array) -> tuple[pa.Array, Mask]:
    """large_string: texts unchanged, numbers as the text of their exact integer.

    Raises:
        UnfitColumnError: as `to_integers`.
    """
    kind = family(values.type)
    if kind == "text":
        return utf8(values)
    if kind == "integer":
        return values.cast(pa.large_string()), np.zeros(len(values), bool)
    integers, unfit = to_integers(values)
    return integers.cast(pa.large_string()), unfit


def to_join_keys(values: pa.Array, text: bool) -> pa.Array:
    """Canonical ids, which are equal for numbers and their texts; null if there is none.

    Args:
        values: values of the logs or of a side table.
        text: return large_string, with all spellings of an integer as `PLAIN_INTEGER` and other
            texts unchanged. Otherwise int64, null where a text isn't an integer.
    """
    if family(values.type) != "text":
        return (to_texts if text else to_integers)(values)[0]
    texts, _ = utf8(values)
    written = mask(pc.match_substring_regex(texts, PLAIN_INTEGER))
    other = ~written & mask(pc.match_substring_regex(texts, _OTHER_SPELLING))
    if text:
        if not other.any():
            return texts
        return pc.if_else(pa.array(other), to_texts(_integers(texts, other))[0], texts)
    return _integers(texts, written | other)


def _integers(texts: pa.Array, chosen: Mask) -> pa.Array:
    return to_integers(only(texts, chosen))[0]


def spellings(texts: pa.Array) -> dict[str, tuple[int, str]]:
    """Number of values and the first one, by spelling: `integer`, `other`, `text`.

    `other` are integers in another spelling: 1.0, 1e5, +1, " 1"; as texts they differ from 1.
    """
    texts = texts.drop_null()
    written = mask(pc.match_substring_regex(texts, PLAIN_INTEGER))
    other = ~written & mask(pc.match_substring_regex(texts, _OTHER_SPELLING))
    chosen = {"integer": written, "other": other, "text": ~written & ~other}
    return {
        name: (int(rows.sum()), str(texts[int(rows.argmax())].as_py())[:40])
        for name, rows in chosen.items()
        if rows.any()
    }


def _of_texts(values: pa.Array, zeros: bool = True) -> tuple[pa.Array, Mask]:
    texts, broken = utf8(values)
    texts = without_null_words(texts)
    if not zeros:
        coded = mask(pc.match_substring_regex(texts, _ZEROS))
        texts, broken = only(texts, ~coded), broken | coded
    short = mask(pc.match_substring_regex(texts, _SHORT_INTEGER))
    known = ~mask(pc.is_null(texts))
    if short[known].all():
        return texts.cast(pa.int64()), broken
    whole = mask(pc.match_substring_regex(texts, _INTEGER))
    short = mask(pc.match_substring_regex(texts, _MAYBE_64_BITS))
    parsed = pc.replace_substring_regex(only(texts, short), r"^\+", "").cast(_DECIMAL)
    signed = _within(parsed, -(2**63), 2**63 - 1)
    upper = only(parsed, _within(parsed, 2**63, 2**64 - 1)).cast(pa.uint64()).view(pa.int64())
    integers = pc.coalesce(only(parsed, signed).cast(pa.int64()), upper)
    floating = known & ~whole & mask(pc.match_substring_regex(texts, _FLOAT))
    if floating.any():
        exact, _ = _of_floats(only(texts, floating).cast(pa.float64()))
        integers = pc.coalesce(integers, exact)
    return integers, broken | (known & mask(pc.is_null(integers)))


def _of_decimals(values: pa.Array) -> tuple[pa.Array, Mask]:
    if values.type.scale <= 0:
        values = values.cast(pa.decimal256(76, 0))
    texts = pc.replace_substring_regex(values.cast(pa.large_string()), r"\.0+$", "")
    whole = mask(pc.match_substring_regex(texts, _INTEGER))
    integers, unfit = _of_texts(only(texts, whole))
    return integers, unfit | (mask(pc.is_valid(texts)) & ~whole)


def _within(values: pa.Array, low: int, high: int) -> Mask:
    above = pc.greater_equal(values, pa.scalar(low, _DECIMAL))
    return mask(pc.and_(above, pc.less_equal(values, pa.scalar(high, _DECIMAL))))


def _of_floats(values: pa.Array) -> tuple[pa.Array, Mask]:
    bits = _MANTISSA[values.type]
    floats = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
    null, infinite = np.isnan(floats), np.isinf(floats)
    inexact = (np.abs(floats) >= 2.0**bits) & ~infinite
    if inexact.any():
        row = int(inexact.argmax())
        raise UnfitColumnError(
            f"contains the float {float(floats[row])!r}, but {values.type} is exact only below "
            f"2**{bits}, so different ids may be equal; write ids as integers or text",
            row,
        )
    unfit = ~null & (infinite | (floats != np.floor(floats)))
    integers = np.where(null | unfit, 0, floats).astype(np.int64)
    return pa.array(integers, mask=null | unfit), unfit
