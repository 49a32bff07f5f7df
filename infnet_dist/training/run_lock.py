"""Locks of a run: one driver at a time trains it, with the workers of one attempt.

A driver holds the run from before it asks for workers until it ends; another driver is refused as
soon as it sees that the holder is alive. Rank 0 of an attempt holds a second lock, since workers
may outlive their driver or their node's connection: the next attempt waits for them.

<folder>/.driver.lock, .driver.json   the driver's lock, and who holds it
<folder>/.lock                        rank 0's
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from infnet_dist.config.run import ScalingConfig
from infnet_dist.errors import UserError
from infnet_dist.io.paths import make_writable

_BEAT_S = 1.0  # between two heartbeats of a driver
_SILENT_S = 10.0  # without a heartbeat: dead, stopped, or on a node that is cut off
# Time for workers to end after their driver was killed or their watchdog ended them.
_END_S = 60.0
_POLL_S = 0.1
log = logging.getLogger("infnet_dist")


@dataclass(frozen=True)
class Holder:
    """A driver that holds a run.

    Attributes:
        host: name of its machine.
        pid: process id there.
        since: UTC.
        job: its submission id; None outside of a submitted job.
    """

    host: str
    pid: int
    since: str
    job: str | None = None

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since} UTC"


@contextmanager
def held_by_driver(folder: Path, scaling: ScalingConfig, job: str | None = None) -> Iterator[None]:
    """Exclude other drivers from the folder of a run, a comparison or a prediction.

    A holder without a heartbeat may be on a lost node: its end is awaited.

    Args:
        folder: of the run, on storage that drivers share; created if missing.
        scaling: its time limits bound the wait for a silent holder.
        job: this driver's submission id.

    Raises:
        UserError: another driver holds it.
        ConfigError: the folder can't be created or written to.
    """
    lock, record = FileLock(folder / ".driver.lock"), folder / ".driver.json"
    me = Holder(socket.gethostname(), os.getpid(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", job)
    make_writable(folder, "INFNET_ROOT, run.folder, run.name, --run-id or --output")
    _take(lock, folder, record, me, scaling.hang_timeout_s + _END_S)
    record.write_text(json.dumps(asdict(me)))
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(record, ended), name="holder", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(OSError):
            record.unlink()
        lock.release()


def _beat(record: Path, ended: threading.Event) -> None:
    """Touch the record at regular intervals; failures of the storage are ignored."""
    while not ended.wait(_BEAT_S):
        with suppress(OSError):
            os.utime(record)


def _take(lock: FileLock, folder: Path, record: Path, me: Holder, wait_s: float) -> None:
    """Acquire the lock, or raise UserError as soon as its holder is seen alive."""
    began, first, warned = time.monotonic(), _heartbeat(record), False
    while not _try(lock):
        waited = time.monotonic() - began
        if _heartbeat(record) not in (first, None):
            raise _taken(folder, _holder(record))
        if waited > wait_s:
            raise _taken(folder, _holder(record), silent_s=waited)
        if waited > _SILENT_S and not warned:
            warned = True
            log.warning(
                "%s is held by %s, with no heartbeat for %.0f s; waiting up to %.0f s for its end",
                *(folder, _holder(record) or "an unknown process", waited, wait_s),
            )
        time.sleep(_POLL_S)
    left = _holder(record)
    if left is None or left.host == me.host:
        return
    while time.monotonic() - began < _SILENT_S:  # some storage has no locks across hosts
        if _heartbeat(record) not in (first, None):
            lock.release()
            raise _taken(folder, left)
        time.sleep(_POLL_S)


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _taken(folder: Path, holder: Holder | None, silent_s: float | None = None) -> UserError:
    silence = f" (no heartbeat for {silent_s:.0f} s)" if silent_s else ""
    return UserError(
        f"{folder} is in use by {holder or 'an unknown process'}{silence}; wait for its end, stop "
        "it, or set another --run-id, run.name or --output"
    )


def _heartbeat(record: Path) -> int | None:
    """When the holder last touched its record (ns); None without a record.

    The file is opened, since NFS asks its server only then.
    """
    try:
        with record.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _holder(record: Path) -> Holder | None:
    """The writer of the record; None if it is missing or half written."""
    try:
        return Holder(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def held_by_workers(run_folder: Path, scaling: ScalingConfig) -> Iterator[None]:
    """On rank 0: wait for the end of an earlier attempt's workers, then hold the run.

    They may be about to end: their driver is gone, or their node lost its network, where only their
    watchdog is sure to end them. Meanwhile the other ranks wait in a collective.

    Raises:
        UserError: they don't end.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_folder / ".lock")
    if not _try(lock):
        wait_s = min(scaling.hang_timeout_s + _END_S, 0.9 * scaling.timeout_s)
        log.warning(
            "workers of an earlier attempt still train %s; waiting up to %.0f s for their end",
            *(run_folder, wait_s),
        )
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise UserError(
                f"{run_folder} is being trained by workers of another process, which didn't end "
                f"within {wait_s:.0f} s; stop them, or set another --run-id"
            ) from None
    try:
        yield
    finally:
        lock.release()
