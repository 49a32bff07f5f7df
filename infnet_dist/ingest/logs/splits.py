"""The split of a row by its time, and the cutoff of the events that it may use."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infnet_dist.config.logs import LogsIngest
from infnet_dist.features.numbers import known_until

IntArray = npt.NDArray[np.int64]
SPLITS = ("train", "valid", "test")
EARLY, LEFT_OUT = 3, 4  # before train; in the gap before valid or test
NEGATIVE = 5  # of train, left out by `ingest.negatives`
OTHERS = ("early", "left_out", "negatives")  # names of the codes after SPLITS
_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Calendar:
    """Time ranges of the splits and cutoffs of events.

    Attributes:
        starts_ms: first epoch millisecond by split; train is absent if it has no start.
        gap_ms: duration that is left out before valid and before test.
        daily: whether rows see events up to the last midnight, otherwise up to the row itself.
        offset_ms: local time minus UTC.
    """

    starts_ms: dict[str, int]
    gap_ms: int
    daily: bool
    offset_ms: int

    @classmethod
    def of(cls, config: LogsIngest) -> "Calendar":
        """The calendar of a config."""
        return cls(
            config.split_starts_ms,
            round(config.gap_h * _HOUR_MS),
            config.refresh == "daily",
            round(config.utc_offset_h * _HOUR_MS),
        )

    def splits(self, times_ms: IntArray) -> IntArray:
        """Indices into SPLITS, EARLY or LEFT_OUT; int64 [n]."""
        codes = np.zeros(len(times_ms), np.int64)
        if "train" in self.starts_ms:
            codes[times_ms < self.starts_ms["train"]] = EARLY
        for split in ("valid", "test"):
            if split in self.starts_ms:
                start = self.starts_ms[split]
                gap = (times_ms >= start - self.gap_ms) & (times_ms < start) & (codes != EARLY)
                codes[gap] = LEFT_OUT
                codes[times_ms >= start] = SPLITS.index(split)
        return codes

    def before_valid(self, times_ms: IntArray) -> npt.NDArray[np.bool_]:
        """Mask of the rows that are used for fitting: train and earlier, without the gap."""
        if "valid" not in self.starts_ms:
            return np.ones(len(times_ms), np.bool_)
        return times_ms < self.starts_ms["valid"] - self.gap_ms

    def known_until(self, times_ms: IntArray) -> IntArray:
        """Cutoffs of rows with these times: they see only events strictly before."""
        return known_until(times_ms, daily=self.daily, offset_ms=self.offset_ms)
