"""64-bit keys of texts: SipHash-2-4 of their UTF-8 bytes, spread by SplitMix64's finaliser.

Equal to `pandas.util.hash_array` with its default key, which ingest calls for long columns
(`ingest/convert/keys.py`). It must never change: ids of training sets depend on it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from infnet_dist.features.hashing import HashArray, IntArray, finalise

HASH_KEY = "0123456789123456"
_INITIAL = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_PADDING = [bytes(count) for count in range(8)]
_LENGTHS = [bytes([length]) for length in range(256)]


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
