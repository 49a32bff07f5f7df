"""Stops a run gracefully at a signal: its workers save at the end of their step, and end."""

import logging
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from infnet_dist.io.filesystem import Folder
from ray_jobs._cli import StoppedError

log = logging.getLogger("infnet_dist")


class ShutdownSignals:
    """Asks the workers to save and stop, by a file that they look for.

    Attributes:
        file: of this process alone, since another driver may try to train the same run.
        signal: the first signal that this process received; None before.
    """

    def __init__(self, run_folder: Path) -> None:
        self.file = run_folder / f".stop-{secrets.token_hex(4)}"
        self.signal: signal.Signals | None = None
        self._run_id = run_folder.name

    def request(self) -> None:
        """Ask the workers to save and stop."""
        self.file.touch()

    def reset(self) -> None:
        """Withdraw a request that was made to add workers; one that a signal made remains."""
        self.file.unlink(missing_ok=True)
        if self.signal is not None:
            self.request()

    def after_saving(self, summary: dict[str, Any]) -> StoppedError:
        """The error to raise after all workers have saved and stopped."""
        how = f"after step {summary['steps']:,}, saved {summary['checkpoint']}"
        return self._error(self.signal or signal.SIGTERM, how, "there")

    def after_loss(self, error: Exception, newest: Folder | None) -> StoppedError:
        """The error to raise if a worker was lost before all had saved."""
        assert self.signal is not None
        how = f"but a worker was lost before the final checkpoint: {error}"
        return self._error(self.signal, how, str(newest or "the beginning"))

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """Request a stop at the first SIGINT or SIGTERM; raise StoppedError at the second."""

        def handle(number: int, frame: FrameType | None) -> None:
            received = signal.Signals(number)
            if self.signal is not None:
                raise self._error(received, "at once, without saving", "the newest checkpoint")
            self.signal = received
            log.warning(
                "%s: the workers save and stop; a second signal stops at once", received.name
            )
            self.request()

        kinds = (signal.SIGINT, signal.SIGTERM)
        before: dict[int, Any] = {kind: signal.signal(kind, handle) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
            self.file.unlink(missing_ok=True)

    def _error(self, received: signal.Signals, how: str, where: str) -> StoppedError:
        text = f"stopped by {received.name} {how}; --run-id {self._run_id} resumes from {where}"
        return StoppedError(text, 128 + received)
