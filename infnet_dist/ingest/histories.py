"""Histories of events strictly before the time of each row, streamed, without loops over rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.errors import DataError
from infnet_dist.features.numbers import gap_seconds

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
        """An attribute as a list<int64> column."""
        return self._lists(self.attributes[:, attribute])

    def gap_column(self) -> pa.ListArray:
        """The time gaps as a list<int64> column."""
        return self._lists(self.gap_s)

    def _lists(self, values: IntArray) -> pa.ListArray:
        items = pa.array(np.ascontiguousarray(values), pa.int64())
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), items)


@dataclass(frozen=True)
class Picked:
    """The events in the histories of n rows, newest first.

    Attributes:
        offsets: int64 [n + 1]; row i owns items offsets[i] to offsets[i + 1].
        events: int64 [items], indices of events.
        gap_s: int64 [items], as in `Histories`.
    """

    offsets: IntArray
    events: IntArray
    gap_s: IntArray


def newest_before(
    event_keys: IntArray,
    event_times_ms: IntArray,
    first: IntArray,
    until_keys: IntArray,
    times_ms: IntArray,
    length: int,
) -> Picked:
    """The last `length` events of the user of each row, before the cutoff of the row.

    Args:
        event_keys: int64 [E], `packed` users and times of the events, ascending.
        event_times_ms: int64 [E], epoch milliseconds.
        first: int64 [n], index of the first event of the user of each row.
        until_keys: int64 [n], `packed` user and cutoff of each row; events are strictly before.
        times_ms: int64 [n], times of the rows, for the gaps.
        length: maximum number of items per row.
    """
    stop = np.searchsorted(event_keys, until_keys, side="left")
    start = np.maximum(first, stop - length)
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # From stop - 1 down: item i of all rows is item i - offset of its row.
    events = np.repeat(stop - 1 + offsets[:-1], lengths) - np.arange(offsets[-1])
    gap_s = gap_seconds(np.repeat(times_ms, lengths), event_times_ms[events])
    return Picked(offsets, events, gap_s)


class HistoryBuilder:
    """The last `length` events of each user for one behaviour, added in time order.

    Events are pending until all later rows may see them; then the newest `length` per user are
    kept. Memory is bounded by num_users x length x (1 + num_attributes) int64, plus pending events.
    """

    def __init__(self, *, num_users: int, length: int, num_attributes: int) -> None:
        """Empty histories of users 0 to num_users - 1."""
        self.length = length
        self._counts = np.zeros(num_users, np.int64)
        self._times = np.zeros((num_users, length), np.int64)
        self._attributes = np.zeros((num_users, length, num_attributes), np.int64)
        nothing = np.zeros(0, np.int64)
        self._pending = _Events(nothing, nothing, np.zeros((0, num_attributes), np.int64))
        self._last_time = -1

    def read_then_add(
        self,
        users: IntArray,
        times_ms: IntArray,
        attributes: IntArray,
        happened: npt.NDArray,
        known_until_ms: IntArray | None = None,
    ) -> Histories:
        """Histories of a chunk of rows; rows with `happened` become events for later rows.

        Args:
            users: int64 [n], in [0, num_users).
            times_ms: int64 [n], epoch milliseconds, ascending over all chunks.
            attributes: int64 [n, A], attributes of the item of each row.
            happened: bool [n], whether the row is an event of this behaviour.
            known_until_ms: int64 [n], ascending and at most `times_ms`; None: `times_ms`.

        Returns:
            For each row the last `length` events of its user before its `known_until_ms`.
        """
        if len(users) == 0:
            return Histories(np.zeros(1, np.int64), attributes[:0], users[:0])
        if known_until_ms is None:
            known_until_ms = times_ms
        assert np.all(np.diff(times_ms) >= 0), "rows must be in time order"
        assert times_ms[0] >= self._last_time, "chunks must be in time order"
        assert np.all(known_until_ms <= times_ms), "a row can't see the future"
        self._last_time = int(times_ms[-1])

        new = _Events(users, times_ms, attributes).where(np.flatnonzero(happened))
        self._pending = self._pending.followed_by(new)
        present, local = np.unique(users, return_inverse=True)
        first, events = self._by_user(present, self._pending)
        picked = newest_before(
            events.keys,
            events.times_ms,
            first[local],
            packed(local, known_until_ms),
            times_ms,
            self.length,
        )
        self._keep_known(int(known_until_ms[-1]))
        return Histories(picked.offsets, events.attributes[picked.events], picked.gap_s)

    def _by_user(self, present: IntArray, pending: "_Events") -> tuple[IntArray, "_Events"]:
        """Events of the users in `present`: user i has events first[i] to first[i + 1].

        In the returned events, users are indices into `present`; sorted by (user, time).
        """
        kept = np.arange(self.length) < self._counts[present][:, None]
        number = np.minimum(np.searchsorted(present, pending.users), len(present) - 1)
        theirs = pending.where(present[number] == pending.users)
        number = np.searchsorted(present, theirs.users)
        events = _Events(
            np.nonzero(kept)[0], self._times[present][kept], self._attributes[present][kept]
        ).followed_by(_Events(number, theirs.times_ms, theirs.attributes))
        events = events.where(np.argsort(events.keys, kind="stable"))
        return np.searchsorted(events.users, np.arange(len(present) + 1)), events

    def _keep_known(self, known_until_ms: int) -> None:
        """Keep the newest `length` events per user of those that all later rows may see."""
        known = self._pending.times_ms < known_until_ms
        present = np.unique(self._pending.users[known])
        if len(present) == 0:
            return
        first, events = self._by_user(present, self._pending.where(known))
        self._pending = self._pending.where(~known)
        counts = np.minimum(np.diff(first), self.length)
        slots = np.arange(self.length) < counts[:, None]
        source = ((first[1:] - counts)[:, None] + np.arange(self.length))[slots]
        times = np.zeros((len(present), self.length), np.int64)
        attributes = np.zeros((*times.shape, events.attributes.shape[1]), np.int64)
        times[slots], attributes[slots] = events.times_ms[source], events.attributes[source]
        self._counts[present] = counts
        self._times[present] = times
        self._attributes[present] = attributes


@dataclass(frozen=True)
class _Events:
    """Users, times (epoch milliseconds) and attributes: int64 [E], [E] and [E, A]."""

    users: IntArray
    times_ms: IntArray
    attributes: IntArray

    @property
    def keys(self) -> IntArray:
        return packed(self.users, self.times_ms)

    def where(self, chosen: npt.NDArray) -> "_Events":
        return _Events(self.users[chosen], self.times_ms[chosen], self.attributes[chosen])

    def followed_by(self, others: "_Events") -> "_Events":
        return _Events(
            np.concatenate([self.users, others.users]),
            np.concatenate([self.times_ms, others.times_ms]),
            np.concatenate([self.attributes, others.attributes]),
        )


class Packing:
    """(number, time) as one integer of the same order, for times of a known range.

    Supports 140 million numbers over two years, 2.9 million over a century; `packed` a million.
    """

    def __init__(self, times_ms: IntArray) -> None:
        """Set the range of times; earlier times are clipped to it."""
        self._first = int(times_ms.min()) if len(times_ms) else 0
        self._span = int(times_ms.max()) - self._first + 2 if len(times_ms) else 1

    def __call__(self, numbers: IntArray, times_ms: IntArray) -> IntArray:
        """Packed numbers (from 0 on) and times (up to the end of the range), int64 [n]."""
        if len(numbers) and int(numbers.max()) >= 2**63 // self._span:
            raise DataError(
                f"{int(numbers.max()) + 1:,} users in one task are too many for their range of "
                "times; decompress the files, so that their sizes give the numbers of rows"
            )
        since_first = np.clip(times_ms - self._first, 0, self._span - 1)
        return numbers.astype(np.int64) * self._span + since_first


def packed(numbers: IntArray, times_ms: IntArray) -> IntArray:
    """(number, epoch milliseconds) as one integer of the same order, int64 [n]."""
    assert len(numbers) == 0 or int(numbers.max()) < 1 << (63 - _TIME_BITS), "too many users"
    return (numbers.astype(np.int64) << _TIME_BITS) | times_ms
