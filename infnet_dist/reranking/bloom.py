"""A Bloom filter of integers in numpy (Bloom 1970).

Hash functions are h1 + i h2 of two hashes (Kirsch and Mitzenmacher 2006), as good as independent
ones. An own one, since the well-kept packages are compiled extensions that test one key at a time.
"""

import math

import numpy as np

from infnet_dist.errors import DataError
from infnet_dist.features.hashing import splitmix64
from infnet_dist.reranking.calibration.calibrators import Array


class BloomFilter:
    """A set of at most `capacity` integers that may claim to contain others.

    Args:
        capacity: number of values up to which the rate holds.
        false_positive_rate: share of other values that it claims to contain, with `capacity` ones.
        seed: of the hashes, in [0, 2^63); another one has other false positives.

    Attributes:
        bits: uint8 [bytes], a copy of which is the whole state beside `count`.
        count: number of values that were added.
    """

    def __init__(self, capacity: int, false_positive_rate: float, seed: int = 0) -> None:
        if capacity < 1 or not 0 < false_positive_rate < 1 or not 0 <= seed < 2**63:
            raise DataError(
                f"Bloom filter: got capacity {capacity}, false positive rate {false_positive_rate} "
                f"and seed {seed}, expected at least 1, between 0 and 1, and in [0, 2^63)"
            )
        self.capacity, self._seed = capacity, seed
        needed = -capacity * math.log(false_positive_rate) / math.log(2) ** 2
        self.bits = np.zeros(math.ceil(needed / 8), np.uint8)
        self._num_hashes = max(1, round(8 * len(self.bits) / capacity * math.log(2)))
        self.count = 0

    @property
    def is_full(self) -> bool:
        """Whether it contains `capacity` values."""
        return self.count >= self.capacity

    @property
    def false_positive_rate(self) -> float:
        """Share of other values that it claims to contain now, from the share of its bits set."""
        filled = int(np.unpackbits(self.bits).sum()) / (8 * len(self.bits))
        return float(filled**self._num_hashes)

    def contains(self, values: Array) -> Array:
        """Mask [n]: False where a value was certainly not added."""
        return self.contains_at(self.places(values))

    def contains_at(self, places: tuple[Array, Array]) -> Array:
        """As `contains`, of values whose `places` are known; equal filters have equal ones."""
        byte_NH, bit_NH = places
        return (self.bits[byte_NH] & bit_NH != 0).all(axis=1)

    def add(self, values: Array) -> None:
        """Add values [n]; those that it claims to contain aren't counted again."""
        values = np.unique(checked_ids(values))
        new = values[~self.contains(values)]
        byte_NH, bit_NH = self.places(new)
        np.bitwise_or.at(self.bits, byte_NH.ravel(), bit_NH.ravel())
        self.count += len(new)

    def places(self, values: Array) -> tuple[Array, Array]:
        """Byte and bit of each hash of each value, [n, hashes]."""
        values = checked_ids(values)
        first, step = splitmix64(values, self._seed), splitmix64(values, self._seed + 1)
        steps_H = np.arange(self._num_hashes, dtype=np.uint64)
        place_NH = first[:, None] + steps_H * (step | np.uint64(1))[:, None]
        place_NH %= np.uint64(8 * len(self.bits))
        bit_NH = np.uint8(1) << (place_NH & np.uint64(7)).astype(np.uint8)
        return (place_NH >> np.uint64(3)).astype(np.int64), bit_NH


def checked_ids(values: Array) -> Array:
    """The values as int64 [n].

    Raises:
        DataError: they aren't integers, or don't fit int64.
    """
    found = np.asarray(values)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and len(found)):
        raise DataError(
            f"item ids: got {found.dtype} of shape {found.shape}, expected integers [n]; hash texts"
        )
    if found.dtype == np.uint64 and len(found) and found.max() >= 2**63:
        raise DataError(f"item ids: got {found.max()}, expected less than 2^63")
    return found.astype(np.int64)
