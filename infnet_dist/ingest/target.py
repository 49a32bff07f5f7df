"""Where a training set is to be: what must be true of that place before any work is done."""

from collections.abc import Iterable
from pathlib import Path

from infnet_dist.errors import DataError


def resolve_target(folder: Path) -> Path:
    """The folder itself where its path is a link: a link can't be replaced by a rename.

    Raises:
        DataError: it is a mount point, which nothing can be renamed to, or a link without an end.
    """
    try:
        folder = folder.resolve()
    except RuntimeError:
        raise DataError(f"data.path: {folder} is a link around in a circle; remove it") from None
    if folder.is_mount():
        raise DataError(
            f"data.path: {folder} is a mount point, and a training set appears by a rename; choose "
            f"a folder in it, e.g. {folder / 'set'}"
        )
    return folder


def check_apart(folder: Path, sources: Iterable[Path]) -> None:
    """Raise DataError if a source lies in the training set's folder: it would be read as logs."""
    for source in sources:
        if source.resolve().is_relative_to(folder):
            raise DataError(
                f"ingest.path: {source} lies in the training set {folder}; move one of them, or "
                "choose another data.path"
            )
