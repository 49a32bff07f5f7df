"""Raw files of a training set by name, size and time, to detect later changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet_dist.data.manifest import LogFile
from infnet_dist.errors import DataError


def raw_state(source: dict[str, Any], folder: Path) -> tuple[LogFile, ...]:
    """The current files below `source["path"]`, without hidden ones; empty without a path.

    Args:
        source: the `ingest` section.
        folder: the training set, which may be below that path.
    """
    if "path" not in source:
        return ()
    root = Path(source["path"])
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_relative_to(folder):
            continue
        if path.is_file() and not any(part.startswith((".", "_")) for part in name.parts):
            stat = path.stat()
            found.append(
                LogFile(path=str(name), size=stat.st_size, modified_ns=max(stat.st_mtime_ns, 0))
            )
    return tuple(found)


def check_same(folder: Path, before: Sequence[LogFile], source: dict[str, Any]) -> None:
    """Check that the raw files are those that the set in `folder` was made from.

    Raises:
        DataError: a file changed, is missing or is new; names the first one.
    """
    then = {file.path: file for file in before}
    now = {file.path: file for file in raw_state(source, folder)}
    for path in sorted(then.keys() | now.keys()):
        if then.get(path) != now.get(path):
            what = "is new" if path not in then else "is gone" if path not in now else "changed"
            raise DataError(
                f"{Path(source['path'], path)} {what} since {folder} was made from it; choose "
                "another data.path, or remove the folder to make it again"
            )
