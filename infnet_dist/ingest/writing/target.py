"""The folder of a new training set: checks before the work, publication after it."""

from pathlib import Path

from infnet_dist.errors import DataError


def resolve_target(folder: Path) -> Path:
    """Resolve links in the path: a link can't be replaced by a rename.

    Raises:
        DataError: the folder is a mount point, which can't be replaced either, or a loop of links.
    """
    try:
        folder = folder.resolve()
    except RuntimeError:
        raise DataError(f"data.path: {folder} is a loop of links; remove it") from None
    if folder.is_mount():
        raise DataError(
            f"data.path: {folder} is a mount point, which a rename can't replace; choose a folder "
            f"in it, e.g. {folder / 'set'}"
        )
    return folder


def publish_folder(staged: Path, folder: Path) -> None:
    """Publish a complete training set by one rename; `folder` is missing or empty."""
    if folder.exists():
        folder.rmdir()
    staged.rename(folder)
