"""The memory that this process may use: the machine's, or less where a container limits it."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


def host_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of RAM, or of the tightest control group that this process is in.

    Args:
        root: of the file system; another one in tests.
    """
    limits = [limit for path in _limit_files(root) if (limit := _read(path)) is not None]
    return min([psutil.virtual_memory().total, *limits])


def _limit_files(root: Path) -> Iterator[Path]:
    """Where limits may be written, of version 2 and version 1 of Linux's control groups."""
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
        for part in (path, *path.parents):  # a group is limited by those above it, too
            yield base / str(part).strip("/") / name


def _read(path: Path) -> int | None:
    """The limit in a file; None where there is none ("max", or no file)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
