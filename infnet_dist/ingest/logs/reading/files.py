"""Lists the files of the logs and cuts them into fragments, by footers or by size."""

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
from infnet_dist.ingest.logs.reading.csv_text import open_text
from infnet_dist.ingest.logs.reading.fragments import (
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
_ENOUGH, _MOST = 4 << 20, 256 << 20  # bytes of text that CSV row counts are estimated from


@dataclass(frozen=True)
class BadFile:
    """A file that can't be read, with the reason."""

    file: LogFile
    reason: str


def list_files(config: LogsIngest, known: Sequence[LogFile] = ()) -> Listing:
    """The files at `config.path`; `known` are those that the training set was made from.

    Raises:
        DataError: the path doesn't exist or contains no such file; or a file can't be read and
            `ingest.skip_bad_files` is off.
    """
    filesystem, root = open_filesystem(config.path)
    shown = without_secrets(config.path)
    suffixes = CSV if config.format == "csv" else PARQUET
    try:
        found = list_place(filesystem, root, suffixes, known)
    except FileNotFoundError:
        raise DataError(f"ingest.path: {shown} doesn't exist; check the path") from None
    except OSError as error:
        raise DataError(f"ingest.path: {shown} can't be listed ({reason(error)})") from None
    if not config.skip_bad_files:
        raise_unreadable(found.unreadable)
    if not found.files:
        other = next(iter(found.left_out), None)
        others = f" ({len(found.left_out):,} of other names, e.g. {other})" if other else ""
        raise DataError(
            f"ingest.path: no {', '.join(suffixes)} file in {shown}{others}; ingest.format is "
            f"{config.format!r}, allowed: parquet, csv, petastorm"
        )
    return found


def raise_unreadable(unreadable: Mapping[str, str]) -> None:
    """Raise DataError if any file can't be read."""
    for path, why in unreadable.items():
        others = f", and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise DataError(
            f"{path} can't be read ({why}){others}; repair it, or set ingest.skip_bad_files=true"
        )


def find_fragments(
    config: LogsIngest, new: Listing, state_files: Sequence[Path]
) -> tuple[list[Fragment], dict[str, str]]:
    """Fragments to read, those of the state first; and reasons by path of unreadable files.

    Args:
        config: format and settings of the logs.
        new: files that aren't in the training set yet.
        state_files: rows that the previous ingest kept.

    Raises:
        DataError: a file can't be read and `ingest.skip_bad_files` is off.
    """
    state = state_fragments(state_files)
    found, bad = fragments(config, new.files, first_number=len(state))
    unreadable = new.unreadable | {entry.file.path: entry.reason for entry in bad}
    if not config.skip_bad_files:
        raise_unreadable(unreadable)
    return [*state, *found] if found else [], unreadable


def fragments(
    config: LogsIngest, files: Sequence[LogFile], first_number: int = 0
) -> tuple[list[Fragment], list[BadFile]]:
    """Fragments of the files; and the files whose footer, or beginning, can't be read."""
    filesystem, _ = open_filesystem(config.path)
    cut = _cut_csv if config.format == "csv" else _cut_parquet
    # Whole files if each row is compared with all rows before it.
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
    """Fragments of about `rows_per_task` rows; None: one with all row groups."""
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
    """The whole file as one fragment."""
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
    """Number of lines, extrapolated from the beginning of the file by its size; at least 1.

    The number of compressed bytes that the text took includes bytes read ahead, so files that are
    small enough are decompressed completely.
    """
    text, lines, unpacked = open_text(raw, file.path), 0, 0
    while block := text.read(_BLOCK):
        lines += max(block.count(b"\n"), block.count(b"\r"))
        unpacked += len(block)
        if unpacked >= _MOST or (unpacked >= _ENOUGH and raw.tell() < file.size):
            return int(lines * file.size / raw.tell()) + 1
    return lines + 1


def state_fragments(files: Sequence[Path]) -> list[Fragment]:
    """Fragments of the rows that an earlier ingest kept."""
    return [
        Fragment(i, file_at(str(path)), None, rows=pq.read_metadata(path).num_rows, state=True)
        for i, path in enumerate(files)
    ]
