"""Which files the logs are, and how they are cut into tasks: by their footers, or by their size."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import MAX_GROUP_ROWS, LogFile
from infnet_dist.errors import DataError
from infnet_dist.ingest.listing import CSV, PARQUET, Listing, list_place
from infnet_dist.ingest.logs.csv_text import open_text
from infnet_dist.ingest.logs.source import (
    Fragment,
    file_at,
    open_parquet,
    raise_unless_corrupt,
    reason,
)
from infnet_dist.io.filesystem import open_filesystem
from infnet_dist.io.urls import without_secrets

_ROWS_PER_TASK = 1_000_000
_AT_ONCE = 16
_BLOCK = 1 << 20
_ENOUGH, _MOST = 4 << 20, 256 << 20  # bytes of text from which a CSV file's rows are estimated


@dataclass(frozen=True)
class BadFile:
    """A file that can't be read, and why."""

    file: LogFile
    reason: str


def list_files(config: LogsIngest, known: Sequence[LogFile] = ()) -> Listing:
    """The files of `config.path`; `known` are those that the training set was made from.

    Raises:
        DataError: there is no such place, or no such file in it; or one can't be read, and
            `ingest.skip_bad_files` is off.
    """
    filesystem, root = open_filesystem(config.path)
    shown = without_secrets(config.path)
    suffixes = CSV if config.format == "csv" else PARQUET
    try:
        found = list_place(filesystem, root, suffixes, known)
    except FileNotFoundError:
        raise DataError(f"ingest.path: nothing at {shown}; check the path") from None
    except OSError as error:
        raise DataError(f"ingest.path: {shown} can't be listed ({reason(error)})") from None
    if not config.skip_bad_files:
        raise_for(found.unreadable)
    if not found.files:
        other = next(iter(found.left_out), None)
        others = f" ({len(found.left_out):,} of other names, e.g. {other})" if other else ""
        raise DataError(
            f"ingest.path: no {', '.join(suffixes)} file in {shown}{others}; ingest.format is "
            f"{config.format!r}, allowed: parquet, csv, petastorm"
        )
    return found


def raise_for(unreadable: Mapping[str, str]) -> None:
    """Raise DataError if there are files that can't be read."""
    for path, why in unreadable.items():
        others = f", nor can {len(unreadable) - 1} others" if len(unreadable) > 1 else ""
        raise DataError(
            f"{path} can't be read ({why}){others}; repair it, or leave out such files with "
            "ingest.skip_bad_files"
        )


def fragments(
    config: LogsIngest, files: Sequence[LogFile], first_number: int = 0
) -> tuple[list[Fragment], list[BadFile]]:
    """The files cut into tasks, and those whose footers, or beginnings, can't be read."""
    filesystem, _ = open_filesystem(config.path)
    cut = _cut_csv if config.format == "csv" else _cut_parquet
    # Whole files where each row is compared with all before it.
    rows_per_task = None if config.time.monotone else _ROWS_PER_TASK
    found: list[Fragment] = []
    bad: list[BadFile] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for part in pool.map(lambda file: cut(filesystem, file, rows_per_task), files):
            if isinstance(part, BadFile):
                bad.append(part)
            else:
                number = first_number + len(found)
                found += [replace(f, number=number + i) for i, f in enumerate(part)]
    return found, bad


def _cut_parquet(
    filesystem: pa.fs.FileSystem, file: LogFile, rows_per_task: int | None
) -> list[Fragment] | BadFile:
    if not file.size:
        return BadFile(file, "it is empty")
    try:
        with open_parquet(filesystem, file) as parquet:
            footer = parquet.metadata
    except (OSError, pa.ArrowException) as error:
        raise_unless_corrupt(error, file.path)
        return BadFile(file, reason(error))
    for group in range(footer.num_row_groups):
        rows = footer.row_group(group).num_rows
        if not 0 <= rows <= MAX_GROUP_ROWS:
            return BadFile(file, f"row group {group} has {rows} rows, at most {MAX_GROUP_ROWS}")
    return _runs(file, footer, rows_per_task)


def _runs(file: LogFile, footer: pq.FileMetaData, rows_per_task: int | None) -> list[Fragment]:
    """Runs of row groups of about so many rows; None: all of them."""
    found: list[Fragment] = []
    groups: list[int] = []
    first_row = rows = 0
    for group in range(footer.num_row_groups):
        groups.append(group)
        rows += footer.row_group(group).num_rows
        is_full = rows_per_task is not None and rows >= rows_per_task
        if is_full or group == footer.num_row_groups - 1:
            found.append(Fragment(0, file, tuple(groups), first_row, rows))
            first_row, rows, groups = first_row + rows, 0, []
    return found


def _cut_csv(
    filesystem: pa.fs.FileSystem, file: LogFile, rows_per_task: int | None
) -> list[Fragment] | BadFile:
    """One task."""
    if not file.size:
        return BadFile(file, "it is empty")
    try:
        with filesystem.open_input_file(file.path) as raw:
            rows = _estimated_rows(raw, file)
    except (OSError, pa.ArrowException) as error:
        raise_unless_corrupt(error, file.path)
        return BadFile(file, reason(error))
    return [Fragment(0, file, None, rows=rows)]


def _estimated_rows(raw: pa.NativeFile, file: LogFile) -> int:
    """Lines per byte of the file's beginning, for all its bytes; at least 1.

    How many packed bytes the text took is known but for those read ahead, so what fits into these
    is unpacked to its end.
    """
    text, lines, unpacked = open_text(raw, file.path), 0, 0
    while block := text.read(_BLOCK):
        lines += max(block.count(b"\n"), block.count(b"\r"))
        unpacked += len(block)
        if unpacked >= _MOST or (unpacked >= _ENOUGH and raw.tell() < file.size):
            return int(lines * file.size / raw.tell()) + 1
    return lines + 1


def state_fragments(files: Sequence[Path]) -> list[Fragment]:
    """Rows that an earlier ingest kept."""
    return [
        Fragment(i, file_at(str(path)), None, rows=pq.read_metadata(path).num_rows, state=True)
        for i, path in enumerate(files)
    ]
