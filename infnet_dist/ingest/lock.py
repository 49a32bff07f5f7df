"""A lock, so that only one ingest at a time works on a training set."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from infnet_dist.errors import DataError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a training set; it is released if the process dies.

    Raises:
        DataError: another ingest holds the lock.
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
            f"another ingest is working on {folder}; wait until it ends, or choose another "
            "data.path"
        ) from None
