"""Where a training set is to be: what must be true of that place before any work is done."""

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
