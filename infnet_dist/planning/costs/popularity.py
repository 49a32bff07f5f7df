"""What a cache of rows can hope for: ids whose popularity falls by Zipf's law."""

from functools import lru_cache

import numpy as np
from torchrec.distributed.types import CacheStatistics

_BUCKETS = 4_000  # of ranks: single ones where ids are popular
_STEEPEST = 4.0  # exponent: nearly all lookups are of a few rows
_LEAST_LOOKUPS = 1_000  # fewer don't tell


class ZipfStatistics(CacheStatistics):
    """Distinct ids of a step, and misses of a cache that holds the most popular rows.

    Args:
        exponent: a in P(rank r) ~ r^-a; 0: all ids are alike.
        num_embeddings: rows of the table.
        lookups: ids in a step of all workers together.
    """

    def __init__(self, *, exponent: float, num_embeddings: int, lookups: float) -> None:
        """Sum up over buckets of ranks."""
        edges = np.unique(np.ceil(np.geomspace(1, num_embeddings + 1, _BUCKETS))).astype(np.float64)
        width = np.diff(edges)
        each = np.sqrt(edges[:-1] * (edges[1:] - 1)) ** -exponent
        total = float((width * each).sum())
        self._share_of_rows = np.concatenate([[0.0], np.cumsum(width) / num_embeddings])
        self._share_of_lookups = np.concatenate([[0.0], np.cumsum(width * each) / total])
        distinct = width * -np.expm1(-lookups * each / total)
        self._expected_lookups = float(distinct.sum())

    @property
    def expected_lookups(self) -> float:
        """Distinct ids of a step."""
        return self._expected_lookups

    def expected_miss_rate(self, clf: float) -> float:
        """Share of the lookups that aren't among the most popular share `clf` of the rows."""
        return float(1 - np.interp(clf, self._share_of_rows, self._share_of_lookups))

    @property
    def cacheability(self) -> float:
        """Area under the miss rate: 0 for one id, near 1 / 2 where all are alike."""
        return float(1 - np.trapezoid(self._share_of_lookups, self._share_of_rows))


@lru_cache(maxsize=4_096)
def zipf_statistics(exponent: float, num_embeddings: int, lookups: float) -> ZipfStatistics:
    """The statistics, made once for equal input."""
    return ZipfStatistics(exponent=exponent, num_embeddings=num_embeddings, lookups=lookups)


def fit_zipf(*, num_embeddings: int, lookups: int, distinct: int) -> float | None:
    """The exponent under which `lookups` ids hold so many distinct ones; None: too few lookups.

    Distinct ids per number of lookups is what a cache lives on. Their expected number falls with
    the exponent, so that the exponent is found by bisection.
    """
    if lookups < _LEAST_LOOKUPS:
        return None
    low, high = 0.0, _STEEPEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        statistics = ZipfStatistics(
            exponent=middle, num_embeddings=num_embeddings, lookups=float(lookups)
        )
        low, high = (middle, high) if statistics.expected_lookups > distinct else (low, middle)
    return round((low + high) / 2, 3)
