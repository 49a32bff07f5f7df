"""Crosses: the combination of two or three ids of a row, hashed to a row of a table of its own."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from infnet_dist.data.hashing import splitmix64

IntArray = npt.NDArray[np.int64]


def cross_ids(components: Sequence[IntArray], num_embeddings: int) -> IntArray:
    """Ids of a cross: 0 where a component is 0 (unknown), else a hash in [1, num_embeddings).

    It must never change: rows of trained tables depend on it.

    Args:
        components: ids [N] of each feature, in order: those of the column, before any hashing, or
            of buckets.
        num_embeddings: rows of the cross's table, >= 2.
    """
    state, known = np.zeros_like(components[0]), np.ones(len(components[0]), bool)
    for ids in components:
        state = splitmix64(state ^ ids).view(np.int64)
        known &= ids != 0
    rows = (1 + state.view(np.uint64) % np.uint64(num_embeddings - 1)).astype(np.int64)
    return np.where(known, rows, 0)
