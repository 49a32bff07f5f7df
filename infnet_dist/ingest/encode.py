"""Vocabularies of values and bucket boundaries of dense features, fitted on the training window.

Row 0 of every table is for null and for values that don't occur in the training window: a new
value in valid is looked up in the row that new values get in production.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.features.ids import KeyMap, VocabularyEncoder
from infnet_dist.ingest.convert.keys import keys, nulls

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Vocabulary:
    """Ids of the values in the training window: 1 + their position in sorted order.

    Attributes:
        key_map: ids by key of the values.
        encoder: keys -> ids.
    """

    def __init__(self, key_map: KeyMap) -> None:
        self.key_map, self.encoder = key_map, VocabularyEncoder(key_map)

    @classmethod
    def fit(cls, values: pa.Array | pa.ChunkedArray) -> "Vocabulary":
        """The vocabulary of all values except null, integers or texts."""
        distinct = pc.drop_null(pc.unique(values))
        found = keys(distinct.take(pc.array_sort_indices(distinct)))
        return cls(KeyMap.of(found, np.arange(1, len(found) + 1), direct=True))

    @property
    def num_embeddings(self) -> int:
        """Number of rows of a table for these ids, including row 0."""
        return len(self.key_map) + 1

    def encode(self, values: pa.Array | pa.ChunkedArray) -> IntArray:
        """Ids of `values`, 0 for null and unknown values; int64 [n]."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        return self.encoder(keys(values), nulls(values))


def quantile_boundaries(values: FloatArray, num_buckets: int) -> tuple[float, ...]:
    """At most `num_buckets` - 1 ascending boundaries that split the values evenly; ignores NaN.

    Each boundary is halfway between two neighbouring values, so no training value is equal to one
    and it doesn't matter which side of a boundary is closed.
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
    """A float32 column with null for NaN."""
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
