"""One ingest at a time for a training set."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from infnet_dist.errors import DataError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the training set's lock, which goes with this process.

    Raises:
        DataError: another ingest holds it.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        with filelock.FileLock(path, timeout=0):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except filelock.Timeout:
        raise DataError(
            f"another ingest is at work on {folder}; wait for its end, or choose another data.path"
        ) from None
