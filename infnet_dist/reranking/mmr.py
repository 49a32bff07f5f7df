"""Maximal marginal relevance (Carbonell and Goldstein 1998, SIGIR), with a sliding window.

The next candidate is that with the largest

    w score_i - (1 - w) max_j similarity_ij

over the last candidates j that were chosen, as many as the window has.
"""

import numpy as np

from infnet_dist.reranking.calibration.calibrators import Array
from infnet_dist.reranking.similarity import Similarity


class Mmr:
    """The state of a selection.

    Args:
        scores: float64 [n].
        similarity: of the n candidates.
        score_weight: w, in [0, 1].
        window: number of chosen candidates; None: all.
    """

    def __init__(
        self, scores: Array, similarity: Similarity, *, score_weight: float, window: int | None
    ) -> None:
        self._scores, self._weight = score_weight * scores, 1 - score_weight
        self._similarity = similarity
        # Without a window one row is enough: the maximum over all that were chosen.
        self._rows_WN = np.full((window or 1, len(scores)), -np.inf)
        self._keeps_all, self._chosen = window is None, 0

    def gains(self) -> Array:
        """The objective of each candidate if it were next, float64 [n]."""
        if not self._chosen:
            return self._scores
        return self._scores - self._weight * self._rows_WN.max(axis=0)

    def add(self, chosen: int) -> None:
        """Choose a candidate."""
        row = self._similarity.row(chosen)
        if self._keeps_all:
            np.maximum(self._rows_WN[0], row, out=self._rows_WN[0])
        else:
            self._rows_WN[self._chosen % len(self._rows_WN)] = row
        self._chosen += 1
