"""Times in epoch milliseconds, and the cutoff of the events that a row may use."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
EARLIEST_MS, LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100
PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Times beyond it are out of range anyway; it bounds products with 1,000 and 86,400,000.
FAR_MS = 2**62
DAY_MS = 86_400_000


def to_milliseconds(times: IntArray, unit: str) -> IntArray:
    """Times in s, ms, us or ns as milliseconds, rounded down; too large ones stay out of range."""
    if unit == "s":
        return np.clip(times, -(FAR_MS // 1_000), FAR_MS // 1_000) * 1_000
    return times // (PER_S[unit] // 1_000)


def known_until(times_ms: IntArray, *, daily: bool, offset_ms: int) -> IntArray:
    """Cutoffs of rows with these times: they see only events strictly before.

    Args:
        times_ms: int64 [n].
        daily: up to the last midnight, otherwise up to the row itself.
        offset_ms: local time minus UTC.
    """
    if not daily:
        return times_ms
    return (times_ms + offset_ms) // DAY_MS * DAY_MS - offset_ms
