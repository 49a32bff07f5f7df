"""What a user was shown, in Bloom filters that expire: items aren't shown twice within some days.

A filter per day. An item counts as shown for at least `days` days after its last exposure, at most
a day longer; then its filter is dropped. A day with more than `per_day` exposures has several
filters, so that the rate of each stays as stated.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infnet_dist.errors import ConfigError, DataError
from infnet_dist.reranking.bloom import BloomFilter, checked_ids
from infnet_dist.reranking.calibration.calibrators import Array

_DAY_S = 86_400
_MAGIC = b"INFE"
_HEAD = struct.Struct("<4sHIQdQI")  # magic, version, days, per_day, rate, seed, number of filters
_FILTER = struct.Struct("<qQ")  # day, count
_CHECKSUM = struct.Struct("<I")
_VERSION = 1


@dataclass(frozen=True)
class ExposureSettings:
    """The size of the filters of a user.

    Attributes:
        days: days for which an item counts as shown.
        per_day: number of exposures on a day that one filter holds.
        false_positive_rate: share of the items never shown that are taken for shown, at most,
            while no day has more than `per_day` exposures.

    Raises:
        ConfigError: days or per_day is less than 1, or the rate isn't between 0 and 1.
    """

    days: int = 7
    per_day: int = 500
    false_positive_rate: float = 0.01

    def __post_init__(self) -> None:
        within = 1 <= self.days < 2**16 and 1 <= self.per_day < 2**32
        if not within or not 0 < self.false_positive_rate < 1:
            raise ConfigError(
                f"exposure: got days {self.days}, per_day {self.per_day}, false_positive_rate "
                f"{self.false_positive_rate}; expected at least 1, at least 1, between 0 and 1"
            )

    def new_filter(self, seed: int) -> BloomFilter:
        """A filter of a day: days + 1 of them together have the rate."""
        rate = 1 - (1 - self.false_positive_rate) ** (1 / (self.days + 1))
        return BloomFilter(self.per_day, rate, seed)


class ExposureFilter:
    """The exposures of one user.

    Args:
        settings: sizes.
        seed: any number of the user in [0, 2^63): other users have other false positives.
    """

    def __init__(self, settings: ExposureSettings, seed: int = 0) -> None:
        self.settings, self._seed = settings, seed
        self._filters: list[tuple[int, BloomFilter]] = []  # by day, oldest first

    def add(self, item_ids: Array, now_s: float) -> None:
        """Record that items were shown, and drop what has expired.

        Args:
            item_ids: integers [n].
            now_s: epoch seconds; a time before the last day counts as the last day.
        """
        day = max(_day(now_s), self._filters[-1][0] if self._filters else _day(now_s))
        self._filters = [(d, one) for d, one in self._filters if d >= day - self.settings.days]
        waiting = np.unique(checked_ids(item_ids))
        while True:
            today = [one for d, one in self._filters if d == day]
            waiting = waiting[~self._contained(waiting, today)]
            if not len(waiting):
                return
            if not today or today[-1].is_full:
                self._filters.append((day, self.settings.new_filter(self._seed)))
            newest = self._filters[-1][1]
            newest.add(waiting[: newest.capacity - newest.count])

    def seen(self, item_ids: Array, now_s: float) -> Array:
        """Mask [n] of the items that count as shown at a time.

        An item that was shown within the last `days` days is always among them.
        """
        since = _day(now_s) - self.settings.days
        return self._contained(item_ids, [one for day, one in self._filters if day >= since])

    def false_positive_rate(self, now_s: float) -> float:
        """Expected share of the items never shown that count as shown at a time."""
        since = _day(now_s) - self.settings.days
        live = [one for day, one in self._filters if day >= since]
        return float(1 - np.prod([1 - one.false_positive_rate for one in live]))

    def _contained(self, item_ids: Array, filters: Sequence[BloomFilter]) -> Array:
        """Mask of the items that one of the filters contains."""
        item_ids = checked_ids(item_ids)
        found = np.zeros(len(item_ids), bool)
        if filters:
            places = filters[0].places(item_ids)  # all filters are equal but for their bits
            for one in filters:
                found |= one.contains_at(places)
        return found

    def to_bytes(self) -> bytes:
        """All filters, with a checksum."""
        s = self.settings
        sizes = (s.days, s.per_day, s.false_positive_rate, self._seed, len(self._filters))
        parts = [_HEAD.pack(_MAGIC, _VERSION, *sizes)]
        for day, one in self._filters:
            parts += [_FILTER.pack(day, one.count), one.bits.tobytes()]
        body = b"".join(parts)
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> "ExposureFilter":
        """The filters of `to_bytes`.

        Raises:
            DataError: the bytes are damaged, or of another version.
        """
        body, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
        if len(body) < _HEAD.size or _CHECKSUM.unpack(checksum)[0] != zlib.crc32(body):
            raise DataError(f"exposure filter: {len(data)} bytes that are damaged; start a new one")
        magic, version, days, per_day, rate, seed, number = _HEAD.unpack_from(body)
        if (magic, version) != (_MAGIC, _VERSION):
            raise DataError(
                f"exposure filter: got format {magic!r} {version}, expected {_MAGIC!r} {_VERSION}; "
                "start a new one"
            )
        found, start = cls(ExposureSettings(days, per_day, rate), seed), _HEAD.size
        for _ in range(number):
            one = found.settings.new_filter(seed)
            day, one.count = _FILTER.unpack_from(body, start)
            start += _FILTER.size
            one.bits = np.frombuffer(body, np.uint8, len(one.bits), start).copy()
            start += len(one.bits)
            found._filters.append((day, one))
        return found


def _day(now_s: float) -> int:
    return int(now_s // _DAY_S)
