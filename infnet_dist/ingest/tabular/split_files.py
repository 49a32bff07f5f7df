"""The Parquet files of each split: a file or a folder per split."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from infnet_dist.config.ingest import SplitName
from infnet_dist.errors import DataError
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.ingest.listing import PARQUET, list_place, log_left_out, some

log = logging.getLogger(__name__)
_NEXT = "change ingest.path or ingest.splits"


def split_files(
    root: Path, splits: Mapping[SplitName, str]
) -> tuple[dict[SplitName, list[Path]], dict[str, str]]:
    """The files of each split, each once; and reasons by path of files that aren't read.

    Args:
        root: folder of the splits; its Parquet files that belong to no split aren't read.
        splits: file, folder or pattern by split, relative to `root`.

    Raises:
        DataError: a path doesn't exist, can't be listed, or has no readable file.
    """
    files, left_out = {}, dict[str, str]()
    for split, name in splits.items():
        files[split], others = _files(root / name)
        left_out |= others
    read = {os.path.realpath(path) for paths in files.values() for path in paths}
    for path in sorted(root.absolute().glob("*")):
        named = os.path.realpath(path) in read or not path.name.lower().endswith(PARQUET)
        if path.is_file() and not named:
            left_out.setdefault(str(path), "no split of ingest.splits names it")
    for (one, first), (other, second) in combinations(files.items(), 2):
        shared = {os.path.realpath(path) for path in first} & set(map(os.path.realpath, second))
        if shared:
            log.warning("%s and %s both read %s", one, other, some(sorted(shared)))
    log_left_out(left_out)
    return files, left_out


def _files(place: Path) -> tuple[list[Path], dict[str, str]]:
    try:
        found = list_place(pa.fs.LocalFileSystem(), str(place.absolute()), PARQUET)
    except OSError as error:
        why = error.strerror or "no such file or folder"
        raise DataError(f"{place} can't be read ({why}); {_NEXT}") from None
    for path, why in found.unreadable.items():
        raise DataError(f"{path} can't be read ({why}); repair or remove it, or {_NEXT}")
    if not found.files:
        raise DataError(f"no Parquet files ({', '.join(PARQUET)}) in {place}; {_NEXT}")
    return [Path(file.path) for file in found.files], found.left_out


def check_alike(files: Mapping[SplitName, Sequence[Path]], exclude: Collection[str]) -> None:
    """Check that all files have the columns of the first file of train, each once.

    Other columns aren't read, with a warning. Columns in `exclude` aren't checked.

    Raises:
        DataError: a file can't be read, lacks a column, or has one twice.
    """
    wanted = [name for name in _names(files["train"][0]) if name not in exclude]
    for split, paths in files.items():
        extra = dict[str, None]()
        for path in paths:
            found = _names(path)
            advice = "add it, or name it in ingest.exclude"
            check_columns(found, [*wanted, *found], str(path), advice=advice)
            extra |= dict.fromkeys(name for name in found if name not in (*wanted, *exclude))
        if extra:
            log.warning(
                "%s: columns that %s lacks aren't read: %s",
                split, files["train"][0], some(list(extra)),
            )  # fmt: skip


def _names(path: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path} can't be read as Parquet ({why}); {_NEXT}") from None
    return names
