"""Counters of earlier events as of the time of each row, without leaks.

A row sees only events strictly before it. With the events sorted by (key, time), each count is a
difference of two cumulative sums, found by binary search, without a loop over rows.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class EventCounts:
    """Sums of event weights by key and time.

    Args:
        keys: int64 [E], e.g. the video; events with key 0 (unknown) are ignored.
        times_ms: int64 [E], epoch milliseconds.
        weights: float64 [E, W], contributions of each event.
    """

    def __init__(self, keys: IntArray, times_ms: IntArray, weights: FloatArray) -> None:
        """Sort the events, once for all calls of `before`."""
        known = np.flatnonzero(keys)
        keys, times_ms = keys[known], times_ms[known]
        self._keys, local = np.unique(keys, return_inverse=True)
        self._first = int(times_ms.min()) if len(known) else 0
        # Packed (key, time), with room for a time after the last event.
        self._span = (int(times_ms.max()) - self._first + 2) if len(known) else 1
        assert len(self._keys) * self._span < 2**63, "too many keys for their time range"
        packed = local * self._span + (times_ms - self._first)
        order = np.argsort(packed, kind="stable")
        self._packed = packed[order]
        zero = np.zeros((1, weights.shape[1]))
        self._sums = np.concatenate([zero, np.cumsum(weights[known][order], axis=0)])

    def before(self, keys: IntArray, times_ms: IntArray) -> FloatArray:
        """Sums over the events with the key of each row and an earlier time; float64 [n, W]."""
        if len(self._keys) == 0:
            return np.zeros((len(keys), self._sums.shape[1]))
        local = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        since_first = np.clip(times_ms - self._first, 0, self._span - 1)
        start = np.searchsorted(self._packed, local * self._span)
        stop = np.searchsorted(self._packed, local * self._span + since_first)
        sums = self._sums[stop] - self._sums[start]
        sums[self._keys[local] != keys] = 0.0
        return sums


def smoothed_rate(
    successes: FloatArray, trials: FloatArray, *, prior: float, strength: float
) -> FloatArray:
    """Success rate smoothed towards `prior` by `strength` pseudo-trials; NaN without trials."""
    rate = (successes + strength * prior) / (trials + strength)
    return np.where(trials > 0, rate, np.nan)


def pair_keys(first: IntArray, second: IntArray, num_second: int) -> IntArray:
    """One key per pair of ids; 0 if either is 0 (unknown)."""
    return np.where((first > 0) & (second > 0), first * num_second + second, 0)
