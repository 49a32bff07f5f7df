"""Hit rates of a cache of rows, and rows in use, under Zipf-distributed ids."""

from functools import lru_cache

import numpy as np
from torchrec.distributed.types import CacheStatistics

_BUCKETS = 4_000  # of popularity ranks; the popular ones have buckets of their own
_MAX_EXPONENT = 4.0  # nearly all lookups are of a few rows
_MIN_LOOKUPS = 1_000  # for a fit


class ZipfStatistics(CacheStatistics):
    """Distinct ids per step, and the miss rate of a cache of the most popular rows.

    Args:
        exponent: a in P(rank r) ~ r^-a; 0: uniform.
        num_embeddings: rows of the table.
        lookups: ids in a step, over all workers.
    """

    def __init__(self, *, exponent: float, num_embeddings: int, lookups: float) -> None:
        """Sum over buckets of popularity ranks."""
        width, each = _buckets(exponent, num_embeddings)
        total = float((width * each).sum())
        self._share_of_rows = np.concatenate([[0.0], np.cumsum(width) / num_embeddings])
        self._share_of_lookups = np.concatenate([[0.0], np.cumsum(width * each) / total])
        distinct = width * -np.expm1(-lookups * each / total)
        self._expected_lookups = float(distinct.sum())

    @property
    def expected_lookups(self) -> float:
        """Expected number of distinct ids in a step."""
        return self._expected_lookups

    def expected_miss_rate(self, clf: float) -> float:
        """Share of the lookups outside of the most popular share `clf` of the rows."""
        return float(1 - np.interp(clf, self._share_of_rows, self._share_of_lookups))

    @property
    def cacheability(self) -> float:
        """Area under the miss rate curve: 0 for a single id, about 0.5 for uniform ids."""
        return float(1 - np.trapezoid(self._share_of_lookups, self._share_of_rows))


@lru_cache(maxsize=4_096)
def zipf_statistics(exponent: float, num_embeddings: int, lookups: float) -> ZipfStatistics:
    """Cached `ZipfStatistics`."""
    return ZipfStatistics(exponent=exponent, num_embeddings=num_embeddings, lookups=lookups)


def effective_rows(exponent: float, num_embeddings: int) -> float:
    """e^entropy of the ids: that many rows, looked up alike, have the same entropy."""
    width, each = _buckets(exponent, num_embeddings)
    share = each / (width * each).sum()
    return float(np.exp(-(width * share * np.log(share)).sum()))


def _buckets(exponent: float, num_embeddings: int) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of popularity ranks: number of rows, and frequency of each, up to a factor."""
    edges = np.unique(np.ceil(np.geomspace(1, num_embeddings + 1, _BUCKETS))).astype(np.float64)
    return np.diff(edges), np.sqrt(edges[:-1] * (edges[1:] - 1)) ** -exponent


def fit_zipf(*, num_embeddings: int, lookups: int, distinct: int) -> float | None:
    """The exponent under which `lookups` ids have `distinct` distinct ones; None: too few lookups.

    The expected number of distinct ids decreases with the exponent, which is found by bisection.
    """
    if lookups < _MIN_LOOKUPS:
        return None
    low, high = 0.0, _MAX_EXPONENT
    while high - low > 1e-3:
        middle = (low + high) / 2
        statistics = ZipfStatistics(
            exponent=middle, num_embeddings=num_embeddings, lookups=float(lookups)
        )
        low, high = (middle, high) if statistics.expected_lookups > distinct else (low, middle)
    return round((low + high) / 2, 3)
