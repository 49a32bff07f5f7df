"""Hashes of integers. They must never change: rows of hashed tables depend on them."""

import hashlib

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_STEP = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: IntArray, seed: int = 0) -> npt.NDArray[np.uint64]:
    """The next number of SplitMix64 after each of `values`: a bijection, so without collisions.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    with np.errstate(over="ignore"):
        x = values.astype(np.int64).view(np.uint64) + _STEP * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashed_rows(values: IntArray, num_embeddings: int, seed: int = 0) -> IntArray:
    """Rows 1 to num_embeddings - 1 for any integers; row 0 is for unknown ids."""
    return (1 + splitmix64(values, seed) % np.uint64(num_embeddings - 1)).astype(np.int64)


def stable_seed(*parts: int | str) -> int:
    """A 63-bit hash of the parts, the same in every process (unlike `hash`)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
