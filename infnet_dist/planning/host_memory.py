"""The memory that this process may use: the machine's RAM, or the limit of its container."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


def host_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of RAM, or the lowest limit of the control groups that this process is in.

    Args:
        root: root of the file system; tests pass another one.
    """
    limits = [limit for path in _limit_files(root) if (limit := _read(path)) is not None]
    return min([psutil.virtual_memory().total, *limits])


def _limit_files(root: Path) -> Iterator[Path]:
    """Files that may hold a limit, for versions 2 and 1 of Linux's control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        path = PurePosixPath(group)
        for part in (path, *path.parents):  # the limits of parent groups apply as well
            yield base / str(part).strip("/") / name


def _read(path: Path) -> int | None:
    """The limit in a file; None if it is unlimited ("max") or there is no file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
