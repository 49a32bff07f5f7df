"""The progress of long work: a bar on terminals, elsewhere a line every few seconds."""

import logging
import time

from tqdm import tqdm

from infnet_dist.io.console import show_progress

_LINE_S = 5.0
log = logging.getLogger("infnet_dist")


class ProgressLines:
    """Shows the progress of one stage after the other.

    Args:
        stage: the first one.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._first, self._start = 0, time.monotonic()
        self._last = self._start

    def __call__(self, stage: str, unit: str, done: int, total: int) -> None:
        """Show that `done` of `total` units are done; the first call of a stage is its start."""
        if show_progress(stage, unit, done, total):
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._first, self._start, self._last = stage, done, now, now
        if now - self._last < _LINE_S and done < total:
            return
        self._last = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = tqdm.format_interval((total - done) / max(rate, 1e-9))
        counts = f"{done:,}/{total:,} {unit}  {rate:,.0f} {unit}/s"
        log.info("%s: %s  %s left", stage, counts, left)
