"""64-bit keys of texts, and hashes of keys. They must never change: ids and rows depend on them.

A text's key is the SipHash-2-4 of its UTF-8 bytes, spread by SplitMix64's finaliser: equal to
`pandas.util.hash_array` with its default key, which ingest calls for long columns
(`ingest/convert/keys.py`).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]
HASH_KEY = "0123456789123456"
_INITIAL = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_PADDING = [bytes(count) for count in range(8)]
_LENGTHS = [bytes([length]) for length in range(256)]
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


def text_keys(texts: Sequence[str]) -> IntArray:
    """The key of each text, int64 [n].

    Raises:
        UnicodeEncodeError: a text has half a surrogate pair, so it has no UTF-8 bytes.
    """
    return finalise(siphash([text.encode() for text in texts])).view(np.int64)


def siphash(values: Sequence[bytes]) -> HashArray:
    """SipHash-2-4 of each value under `HASH_KEY`, uint64 [n].

    Source: Aumasson, Bernstein, "SipHash: a Fast Short-Input PRF", 2012.
    """
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    words = np.frombuffer(b"".join(map(_padded, values)), "<u8").astype(np.uint64)
    counts = lengths // 8 + 1  # of words
    longest_first = np.argsort(-counts, kind="stable")
    counts_sorted = counts[longest_first]
    starts = (np.cumsum(counts) - counts)[longest_first]
    state = [np.full(len(values), start, np.uint64) for start in _keyed(HASH_KEY.encode())]
    with np.errstate(over="ignore"):
        for number in range(int(counts.max(initial=0))):
            # Values that have a word of this number are the first ones.
            active = int(np.searchsorted(-counts_sorted, -number))
            v0, v1, v2, v3 = (v[:active] for v in state)
            word = words[starts[:active] + number]
            v3 ^= word
            _rounds(2, v0, v1, v2, v3)
            v0 ^= word
        state[2] ^= np.uint64(0xFF)
        _rounds(4, *state)
    found = np.empty(len(values), np.uint64)
    found[longest_first] = state[0] ^ state[1] ^ state[2] ^ state[3]
    return found


def _padded(value: bytes) -> bytes:
    """Whole words: the bytes, zeros, and the length modulo 256 as the last byte."""
    length = len(value)
    return value + _PADDING[7 - length % 8] + _LENGTHS[length % 256]


def _keyed(key: bytes) -> list[int]:
    low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    return [start ^ k for start, k in zip(_INITIAL, (low, high, low, high), strict=True)]


def _rounds(count: int, v0: HashArray, v1: HashArray, v2: HashArray, v3: HashArray) -> None:
    """SipRounds, in place."""
    for _ in range(count):
        v0 += v1
        _rotate(v1, 13)
        v1 ^= v0
        _rotate(v0, 32)
        v2 += v3
        _rotate(v3, 16)
        v3 ^= v2
        v0 += v3
        _rotate(v3, 21)
        v3 ^= v0
        v2 += v1
        _rotate(v1, 17)
        v1 ^= v2
        _rotate(v2, 32)


def _rotate(v: npt.NDArray[np.uint64], bits: int) -> None:
    """Rotate to the left, in place."""
    high = v >> np.uint64(64 - bits)
    v <<= np.uint64(bits)
    v |= high
