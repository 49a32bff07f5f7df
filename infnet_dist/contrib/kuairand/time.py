"""Epoch milliseconds as Beijing time (UTC + 8 h, no daylight saving)."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_BEIJING_MS = 8 * 3_600_000
_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000


def midnight_ms(time_ms: IntArray) -> IntArray:
    """The last midnight in Beijing at or before each time, in epoch milliseconds."""
    return (time_ms + _BEIJING_MS) // _DAY_MS * _DAY_MS - _BEIJING_MS


def hour(time_ms: IntArray) -> IntArray:
    """Hour of the day, 0 to 23."""
    return (time_ms + _BEIJING_MS) // _HOUR_MS % 24


def weekday(time_ms: IntArray) -> IntArray:
    """Day of the week, 0 to 6, from Thursday on (1970-01-01 was one)."""
    return (time_ms + _BEIJING_MS) // _DAY_MS % 7
