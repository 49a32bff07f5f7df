"""Similarity of candidates: given, or the cosine of their embeddings."""

from typing import Protocol

import numpy as np

from infnet_dist.errors import DataError
from infnet_dist.reranking.calibration.calibrators import Array


class Similarity(Protocol):
    """Similarities of n candidates, in [-1, 1]; 1 of each with itself."""

    def row(self, candidate: int) -> Array:
        """Similarities of one candidate with all, float64 [n]."""


class Cosine:
    """The cosine of embeddings. Zeros (an item without an embedding) are similar to nothing else.

    Args:
        embeddings_ND: one row per candidate.

    Raises:
        DataError: they are no matrix, or a value isn't finite.
    """

    def __init__(self, embeddings_ND: Array) -> None:
        found = np.asarray(embeddings_ND, np.float64)
        if found.ndim != 2 or not np.isfinite(found).all():
            raise DataError(
                f"embeddings: got shape {found.shape}, expected finite numbers [candidates, width]"
            )
        largest_N1 = np.abs(found).max(axis=1, initial=0.0, keepdims=True)
        found = found / np.where(largest_N1 > 0, largest_N1, 1.0)  # no overflow in the squares
        norms_N1 = np.sqrt((found**2).sum(axis=1, keepdims=True))
        self._units_ND = found / np.where(norms_N1 > 0, norms_N1, 1.0)

    def row(self, candidate: int) -> Array:
        """See `Similarity`."""
        found = self._units_ND @ self._units_ND[candidate]
        found[candidate] = 1.0
        return found


class GivenSimilarity:
    """A matrix of similarities.

    Args:
        similarity_NN: symmetric, in [-1, 1], with ones on the diagonal.

    Raises:
        DataError: it isn't so.
    """

    def __init__(self, similarity_NN: Array) -> None:
        found = np.asarray(similarity_NN, np.float64)
        if found.ndim != 2 or found.shape[0] != found.shape[1]:
            raise DataError(f"similarity: got shape {found.shape}, expected [n, n]")
        within = (np.abs(found) <= 1 + 1e-6).all() and np.allclose(found.diagonal(), 1, atol=1e-6)
        if not within or not np.allclose(found, found.T, atol=1e-6):
            raise DataError(
                "similarity: expected a symmetric matrix in [-1, 1] with ones on its diagonal"
            )
        self._rows_NN = found

    def row(self, candidate: int) -> Array:
        """See `Similarity`."""
        return self._rows_NN[candidate]
