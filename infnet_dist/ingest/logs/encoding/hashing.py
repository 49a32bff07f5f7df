"""Keys of several columns at once, and the buckets that tasks divide keys into."""

import numpy as np
import numpy.typing as npt

from infnet_dist.features.hashing import splitmix64

IntArray = npt.NDArray[np.int64]


def combined(columns: list[IntArray]) -> IntArray:
    """One key per row from several keys, int64 [n]."""
    key = columns[0]
    for other in columns[1:]:
        key = splitmix64(key, 1).view(np.int64) ^ splitmix64(other, 2).view(np.int64)
        key = splitmix64(key).view(np.int64)
    return key


def buckets_of(hashes: npt.NDArray[np.uint64], num_buckets: int) -> IntArray:
    """Bucket of each hash in [0, num_buckets), int64."""
    return (hashes % np.uint64(num_buckets)).astype(np.int64)


def counting_bucket(keys: IntArray, num_buckets: int) -> IntArray:
    """Bucket of each key of counters in stage count."""
    return buckets_of(splitmix64(keys, 3), num_buckets)
