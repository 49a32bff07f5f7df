"""Graceful shutdown: a run that is asked to stop saves, and can resume from there."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.5
log = logging.getLogger("infnet_dist")


class GracefulShutdown:
    """A request to stop the run, by a signal to this process, by a file, or by notice.

    The launcher, which may run on another machine, creates the file.

    Args:
        file: the file; None without one.
        notice: returns why a worker is about to be lost; empty if none is.
    """

    def __init__(self, file: Path | None, notice: Callable[[], str] = str) -> None:
        self._file = file
        self._notice = notice
        self._by_signal = threading.Event()
        self._found = False
        self._next_poll = 0.0

    @property
    def requested(self) -> bool:
        """True from the request on; checks for the file twice a second."""
        now = time.monotonic()
        if self._file is not None and not self._found and now >= self._next_poll:
            self._next_poll = now + _POLL_S
            self._found = self._file.exists()
        if not self._found and (reason := self._notice()):
            self._found = True
            log.warning("%s: all workers save and stop", reason)
        return self._found or self._by_signal.is_set()

    @contextmanager
    def on_sigterm(self) -> Iterator["GracefulShutdown"]:
        """Treat SIGTERM as a request within this context, in the process's main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self._by_signal.set())
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)
