"""Greedy MAP inference of a determinantal point process, with a sliding window.

The next candidate is that with the largest

    w score_i + (1 - w) log(det S[W + i] / det S[W])

over the window W of the last that were chosen: greedily the largest w sum of scores + (1 - w)
log det S of the chosen (Chen et al. 2018, NeurIPS, 1709.05135, section 4, whose kernel has the
scores inside). The ratio d_i^2 is kept for all candidates by an incremental Cholesky decomposition
(their algorithm 1), O(window x n) per choice. Where the window moves on, an orthogonal
transformation takes its oldest member out: theirs is a chain of rotations, here it is one
reflection, of the same cost.

S is the similarity with its off-diagonal elements multiplied by 1 - DIAGONAL. So d_i^2 >= DIAGONAL:
equal items, or more items in the window than their embeddings have dimensions, are disliked and not
impossible.
"""

import numpy as np

from infnet_dist.errors import DataError
from infnet_dist.reranking.calibration.calibrators import Array
from infnet_dist.reranking.similarity import Similarity

DIAGONAL = 1e-3


class Dpp:
    """The state of a selection.

    Args:
        scores: float64 [n].
        similarity: of the n candidates, positive semi-definite.
        score_weight: w, in [0, 1].
        window: number of chosen candidates; None: all.
    """

    def __init__(
        self, scores: Array, similarity: Similarity, *, score_weight: float, window: int | None
    ) -> None:
        self._scores, self._weight = score_weight * scores, 1 - score_weight
        self._similarity, self._window = similarity, window
        self._members: list[int] = []  # of the window, oldest first
        # Column i is c_i: V c_i = S[W, i] for the Cholesky factor V of S[W], whose rows are c_j.
        self._c_WN = np.empty((window or 1, len(scores)))
        self._d2_N = np.ones(len(scores))

    def gains(self) -> Array:
        """The objective of each candidate if it were next, float64 [n]; of chosen ones any."""
        return self._scores + self._weight * np.log(self._d2_N)

    def add(self, chosen: int) -> None:
        """Choose a candidate.

        Raises:
            DataError: the similarity isn't positive semi-definite.
        """
        if len(self._members) == self._window:
            self._remove_oldest()
        size = len(self._members)
        if size == len(self._c_WN):
            self._c_WN = np.concatenate([self._c_WN, np.empty_like(self._c_WN)])
        c_WN = self._c_WN[:size]
        s_N = (1 - DIAGONAL) * self._similarity.row(chosen)
        s_N[chosen] = 1.0
        e_N = (s_N - c_WN[:, chosen] @ c_WN) / np.sqrt(self._d2_N[chosen])
        self._c_WN[size] = e_N
        self._d2_N -= e_N**2
        self._d2_N[chosen] = np.inf  # for good: it can't be chosen again
        self._members.append(chosen)
        if self._d2_N.min() < DIAGONAL / 2:
            raise DataError(
                "the similarity of the candidates isn't positive semi-definite, which a DPP needs; "
                "pass embeddings, or use mmr"
            )

    def _remove_oldest(self) -> None:
        """Reflect the c_i so that the other members of the window have 0 in the last element.

        What a candidate has in that element is the share of the oldest member alone.
        """
        c_WN = self._c_WN[: len(self._members)]
        normal_W = np.linalg.solve(c_WN[:, self._members].T, _first_unit(len(c_WN)))
        normal_W /= np.sqrt(normal_W @ normal_W)  # orthogonal to all members but the oldest
        normal_W[-1] += np.copysign(1.0, normal_W[-1])
        c_WN -= np.outer(2 / (normal_W @ normal_W) * normal_W, normal_W @ c_WN)
        self._d2_N += c_WN[-1] ** 2
        del self._members[0]


def _first_unit(size: int) -> Array:
    found = np.zeros(size)
    found[0] = 1.0
    return found
