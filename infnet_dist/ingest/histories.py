"""Behaviour histories from events strictly before each row's time, streamed, without row loops."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IntArray = npt.NDArray[np.int64]
_TIME_BITS = 43  # milliseconds since the epoch fit until the year 2248


@dataclass(frozen=True)
class Histories:
    """Histories of n rows, newest item first.

    Attributes:
        offsets: int64 [n + 1]; row i owns items offsets[i] to offsets[i + 1].
        attributes: int64 [items, A], e.g. item, author, action.
        gap_s: int64 [items], seconds from the item's event to the row, rounded down, at least 1.
    """

    offsets: IntArray
    attributes: IntArray
    gap_s: IntArray

    def column(self, attribute: int) -> pa.ListArray:
        """Attribute number `attribute` as a list<int64> column."""
        return self._lists(self.attributes[:, attribute])

    def gap_column(self) -> pa.ListArray:
        """The time gaps as a list<int64> column."""
        return self._lists(self.gap_s)

    def _lists(self, values: IntArray) -> pa.ListArray:
        items = pa.array(np.ascontiguousarray(values), pa.int64())
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), items)


class HistoryBuilder:
    """The last `length` events of each user for one behaviour, fed in time order.

    Memory is bounded: num_users x length x (1 + num_attributes) int64. Chunks must come in time
    order and must not share a timestamp, so that "strictly before" is exact across chunks.
    """

    def __init__(self, *, num_users: int, length: int, num_attributes: int) -> None:
        """An empty history for users 0 to num_users - 1."""
        self.length = length
        self._counts = np.zeros(num_users, np.int64)
        self._times = np.zeros((num_users, length), np.int64)
        self._attributes = np.zeros((num_users, length, num_attributes), np.int64)
        self._last_time = -1

    def read_then_add(
        self, users: IntArray, times_ms: IntArray, attributes: IntArray, happened: npt.NDArray
    ) -> Histories:
        """Histories of a chunk of rows; then the rows with `happened` become events themselves.

        Args:
            users: int64 [n], in [0, num_users).
            times_ms: int64 [n], epoch milliseconds, ascending.
            attributes: int64 [n, A] of each row's item.
            happened: bool [n], whether the row is an event of this behaviour.

        Returns:
            For each row the user's last `length` events with time < the row's time.
        """
        if len(users) == 0:
            return Histories(np.zeros(1, np.int64), attributes[:0], users[:0])
        assert np.all(np.diff(times_ms) >= 0), "rows must be in time order"
        assert times_ms[0] > self._last_time, "chunks must not share a timestamp"
        self._last_time = int(times_ms[-1])

        present, local = np.unique(users, return_inverse=True)
        assert len(present) < 1 << (63 - _TIME_BITS), "too many users in a chunk; feed smaller ones"
        owner, time, value = self._events(present, local, times_ms, attributes, happened)
        event_keys = (owner << _TIME_BITS) | time
        row_keys = (local.astype(np.int64) << _TIME_BITS) | times_ms
        stop = np.searchsorted(event_keys, row_keys, side="left")
        first = np.searchsorted(owner, np.arange(len(present) + 1), side="left")
        start = np.maximum(first[local], stop - self.length)

        lengths = stop - start
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        newest_first = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        picked = np.repeat(stop - 1, lengths) - newest_first
        gap_ms = np.repeat(times_ms, lengths) - time[picked]
        self._keep_newest(present, first, time, value)
        return Histories(offsets, value[picked], np.maximum(gap_ms // 1000, 1))

    def _events(
        self,
        present: IntArray,
        local: IntArray,
        times_ms: IntArray,
        attributes: IntArray,
        happened: npt.NDArray,
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Kept and new events of the users in `present`, sorted by (user, time)."""
        kept = np.arange(self.length) < self._counts[present][:, None]
        chosen = np.flatnonzero(happened)
        owner = np.concatenate([np.nonzero(kept)[0], local[chosen]]).astype(np.int64)
        time = np.concatenate([self._times[present][kept], times_ms[chosen]])
        value = np.concatenate([self._attributes[present][kept], attributes[chosen]])
        order = np.lexsort((time, owner))
        return owner[order], time[order], value[order]

    def _keep_newest(
        self, present: IntArray, first: IntArray, time: IntArray, value: IntArray
    ) -> None:
        """Store the newest `length` events of each present user, oldest first."""
        counts = np.minimum(np.diff(first), self.length)
        slots = np.arange(self.length) < counts[:, None]
        source = (first[1:] - counts)[:, None] + np.arange(self.length)
        times = np.zeros((len(present), self.length), np.int64)
        attributes = np.zeros((len(present), self.length, value.shape[1]), np.int64)
        times[slots] = time[source[slots]]
        attributes[slots] = value[source[slots]]
        self._counts[present] = counts
        self._times[present] = times
        self._attributes[present] = attributes
