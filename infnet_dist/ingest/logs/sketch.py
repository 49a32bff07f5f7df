"""How many distinct values there are, from the smallest of their hashes."""

import numpy as np
import numpy.typing as npt

HashArray = npt.NDArray[np.uint64]
SKETCH_SIZE = 4_096  # standard error 1 / sqrt(size): 1.6 %


def smallest_hashes(hashes: HashArray) -> npt.NDArray[np.int64]:
    """The sketch: the smallest distinct hashes, as int64 bits. Sketches of parts may be joined."""
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
    """Expected share of values that share their row with another, of so many hashed at random."""
    return float(-np.expm1(-max(distinct - 1, 0) / rows))
