"""Hashes of 64-bit keys. They must never change: rows of trained tables depend on them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]
STEP = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)


def finalise(x: HashArray) -> HashArray:
    """The finaliser of SplitMix64: a bijection that spreads similar numbers."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(SHIFTS[0]))) * np.uint64(FACTORS[0])
        x = (x ^ (x >> np.uint64(SHIFTS[1]))) * np.uint64(FACTORS[1])
        return x ^ (x >> np.uint64(SHIFTS[2]))


def splitmix64(values: IntArray, seed: int = 0) -> HashArray:
    """The next number of SplitMix64 after each of `values`: a bijection, so without collisions.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    with np.errstate(over="ignore"):
        step = np.uint64(STEP) * np.uint64(seed + 1)
        return finalise(values.astype(np.int64).view(np.uint64) + step)


def hashed_rows(values: IntArray, num_embeddings: int, seed: int = 0) -> IntArray:
    """Rows 1 to num_embeddings - 1 for any integers; row 0 is for unknown ids."""
    return (1 + splitmix64(values, seed) % np.uint64(num_embeddings - 1)).astype(np.int64)


def raw_rows(ids: IntArray, num_embeddings: int) -> IntArray:
    """Rows of raw ids: hashed; 0 stays 0, unknown."""
    return np.where(ids == 0, 0, hashed_rows(ids, num_embeddings))


def known_ids(ids: IntArray, num_embeddings: int) -> IntArray:
    """The ids, with 0 (unknown) for those that a table of a trained model has no row for."""
    return np.where(ids < num_embeddings, ids, 0)


def cross_ids(components: Sequence[IntArray], num_embeddings: int) -> IntArray:
    """Ids of a cross: 0 where a component is 0 (unknown), else a hash in [1, num_embeddings).

    Args:
        components: ids [N] of each feature, in order: those of the column, before any hashing, or
            of buckets.
        num_embeddings: rows of the cross's table, >= 2.
    """
    state, known = np.zeros_like(components[0]), np.ones(len(components[0]), bool)
    for ids in components:
        state = splitmix64(state ^ ids).view(np.int64)
        known &= ids != 0
    rows = (1 + state.view(np.uint64) % np.uint64(num_embeddings - 1)).astype(np.int64)
    return np.where(known, rows, 0)
