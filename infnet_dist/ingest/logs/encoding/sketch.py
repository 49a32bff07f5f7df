"""Estimates of the number of distinct values from the smallest of their hashes."""

import numpy as np
import numpy.typing as npt

HashArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
SKETCH_SIZE = 4_096  # standard error 1 / sqrt(size): 1.6 %


def smallest_hashes(hashes: HashArray) -> npt.NDArray[np.int64]:
    """The sketch: the smallest distinct hashes, as int64 bits. Sketches of parts can be joined."""
    distinct = np.unique(hashes)[:SKETCH_SIZE]
    return distinct.view(np.int64)


def estimate_distinct(sketch: npt.NDArray[np.int64]) -> int:
    """Distinct values behind the joined sketches; exact below SKETCH_SIZE.

    Source: Bar-Yossef et al., "Counting Distinct Elements in a Data Stream", 2002.
    """
    smallest = np.unique(sketch.view(np.uint64))[:SKETCH_SIZE]
    if len(smallest) < SKETCH_SIZE:
        return len(smallest)
    return round((SKETCH_SIZE - 1) / (float(smallest[-1]) / 2.0**64))


def colliding_share(distinct: int, rows: int) -> float:
    """Expected share of values that share their row with another one, under random hashing."""
    return float(-np.expm1(-max(distinct - 1, 0) / rows))


def occurrences(sketch: IntArray, hashes: HashArray) -> IntArray:
    """Number of occurrences in `hashes` of each hash of a sketch; int64 [len(sketch)]."""
    ascending = sketch.view(np.uint64)
    if not len(sketch):
        return np.zeros(0, np.int64)
    place = np.minimum(np.searchsorted(ascending, hashes), len(sketch) - 1)
    return np.bincount(place[ascending[place] == hashes], minlength=len(sketch))


def unseen_share(
    values: IntArray, counts: IntArray, pending: IntArray, sketch: IntArray, known: IntArray
) -> float:
    """Estimated share of lookups in valid and test of values that don't occur in train.

    Args:
        values: int64 [n], hashes in the sketches of all parts.
        counts: int64 [n], occurrences of each in train.
        pending: int64 [n], occurrences of each in valid and test.
        sketch: the joined sketch; larger hashes aren't in the sketches of all parts.
        known: hashes of earlier logs.
    """
    found, place = np.unique(values.view(np.uint64), return_inverse=True)
    in_train = np.bincount(place, counts, len(found)) > 0
    later = np.bincount(place, pending, len(found))
    seen = in_train | np.isin(found, known.view(np.uint64))
    complete = np.isin(found, sketch.view(np.uint64))
    return float(later[complete & ~seen].sum() / max(later[complete].sum(), 1))
