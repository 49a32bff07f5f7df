"""Values -> ids and numbers -> buckets, both learned from the training window alone.

Row 0 of every table means unknown, missing or never seen in the training window, so that a value
that first shows up in valid meets the row that such values will meet in production.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Vocabulary:
    """Dense ids of the values seen in the training window: 1 + their sorted position.

    Attributes:
        values: the distinct values, ascending, without null.
    """

    values: pa.Array

    @classmethod
    def fit(cls, values: pa.Array) -> "Vocabulary":
        """The vocabulary of all values that occur, nulls aside."""
        distinct = pc.drop_null(pc.unique(values))
        return cls(distinct.take(pc.array_sort_indices(distinct)))

    @property
    def num_embeddings(self) -> int:
        """Rows that a table for these ids needs, row 0 included."""
        return len(self.values) + 1

    def encode(self, values: pa.Array) -> IntArray:
        """Ids of `values`, 0 where null or not in the vocabulary; int64 [n]."""
        found = pc.fill_null(pc.index_in(values, value_set=self.values, skip_nulls=True), -1)
        return found.to_numpy(zero_copy_only=False).astype(np.int64) + 1


def quantile_boundaries(values: FloatArray, num_buckets: int) -> tuple[float, ...]:
    """At most `num_buckets` - 1 ascending boundaries that split the values evenly; NaN is left out.

    Each boundary lies halfway between two neighbouring values, so that no training value sits on
    one and it doesn't matter which side of a boundary is closed.
    """
    present = np.sort(values[~np.isnan(values)])
    if len(present) == 0:
        return ()
    distinct = np.unique(present)
    shares = np.arange(1, num_buckets) / num_buckets
    picked = np.unique(present[(shares * len(present)).astype(np.int64)])
    position = np.searchsorted(distinct, picked)
    position = position[position + 1 < len(distinct)]
    halfway = (distinct[position] + distinct[position + 1]) / 2
    return tuple(float(b) for b in np.unique(halfway.astype(np.float32)))


def float_column(values: FloatArray) -> pa.Array:
    """A float32 column with null where `values` is NaN."""
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
