"""64-bit keys of values, equal on every machine, and the buckets that they belong to."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.data.hashing import splitmix64

IntArray = npt.NDArray[np.int64]


def keys(values: pa.Array) -> IntArray:
    """Integers unchanged, texts by hash, null as -1; int64 [n]."""
    if pa.types.is_integer(values.type):
        return pc.fill_null(values, -1).to_numpy().astype(np.int64)
    encoded = values.dictionary_encode()
    texts = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    hashes = pd.util.hash_array(texts, categorize=False).view(np.int64)
    hashes = np.append(hashes, -1)  # of null
    return hashes[pc.fill_null(encoded.indices, len(texts)).to_numpy()]


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
