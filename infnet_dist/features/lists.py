"""Transforms of lists: truncation, and the actions of a history's items."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Lists(NamedTuple):
    """Lists of N rows, one after the other.

    Attributes:
        values: int64 or float32 [items].
        lengths: int64 [N].
    """

    values: npt.NDArray[Any]
    lengths: IntArray

    def first(self, max_length: int) -> "Lists":
        """The first `max_length` items of each list; of a history, the newest."""
        kept = first_items(self.lengths, max_length)
        return Lists(self.values[kept], cut(self.lengths, max_length))


def cut(lengths: npt.NDArray[Any], max_length: int) -> npt.NDArray[Any]:
    """Lengths of lists that are cut after `max_length` items."""
    return lengths.clip(max=max_length)


def first_items(lengths: IntArray, max_length: int) -> BoolArray:
    """Mask of the items that lists of these lengths keep when they are cut; [items]."""
    if not len(lengths) or lengths.max() <= max_length:
        return np.ones(int(lengths.sum()), bool)
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths) < max_length


def action_codes(flags: Sequence[BoolArray], count: int) -> npt.NDArray[np.int32]:
    """1 plus one bit per action, for each of `count` items; int32 [count]."""
    codes = np.ones(count, np.int32)
    for bit, flag in enumerate(flags):
        codes += flag.astype(np.int32) << bit
    return codes
