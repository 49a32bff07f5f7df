"""Asking a run to end in good order: it saves, and goes on from there when it is started again."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_S = 0.5


class GracefulShutdown:
    """Whether somebody wants the run to stop: by a signal to this process, or by a file.

    The launcher, which may run on another machine, makes the file.

    Args:
        file: None looks at signals alone.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._by_signal = threading.Event()
        self._found = False
        self._next_look = 0.0

    @property
    def requested(self) -> bool:
        """True once it was made; looks at the file twice a second."""
        now = time.monotonic()
        if self._file is not None and not self._found and now >= self._next_look:
            self._next_look = now + _LOOK_S
            self._found = self._file.exists()
        return self._found or self._by_signal.is_set()

    @contextmanager
    def on_sigterm(self) -> Iterator["GracefulShutdown"]:
        """Take SIGTERM as a request meanwhile, if this is the process's main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self._by_signal.set())
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)
