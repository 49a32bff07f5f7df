"""Which files the logs are, and their rows: local folders and URLs, Parquet, CSV or Petastorm.

URLs are Arrow's (s3://bucket/logs?endpoint_override=host:port&scheme=http, gs://, hdfs://) or any
that fsspec knows. Names that start with a dot or an underscore aren't data.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper

from infnet_dist.data.manifest import MAX_GROUP_ROWS, LogFile
from infnet_dist.data.petastorm_file import PetastormFile, read_fields
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.filesystem import open_filesystem
from infnet_dist.ingest.logs.csv_text import parse_options, text_options
from infnet_dist.logs_config import CsvFormat, LogsIngest
from infnet_dist.urls import without_secrets

_SUFFIXES = {"parquet": (".parquet", ".pq"), "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz")}
_ROWS_PER_TASK = 1_000_000
_ROWS_PER_CHUNK = 131_072
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class Fragment:
    """What one task reads: some row groups of a file, or (row_groups None) all of it.

    Attributes:
        number: of the fragment; part of each row's key.
        first_row: rows of the file before it.
        rows: rows in it; 0 if only reading tells.
        state: whether an earlier ingest wrote it, beside the training set.
    """

    number: int
    file: LogFile
    row_groups: tuple[int, ...] | None
    first_row: int = 0
    rows: int = 0
    state: bool = False


@dataclass(frozen=True)
class BadFile:
    """A file that can't be read, and why."""

    file: LogFile
    reason: str


def list_files(config: LogsIngest) -> list[LogFile]:
    """The files of `config.path`, by path.

    Raises:
        DataError: there is no such place, or no such file in it.
    """
    filesystem, root = open_filesystem(config.path)
    shown = without_secrets(config.path)
    suffixes = _SUFFIXES["csv" if config.format == "csv" else "parquet"]
    folder, pattern = _folder_of(root)
    try:
        info = filesystem.get_file_info(folder)
        if info.type == pa.fs.FileType.NotFound:
            raise DataError(f"ingest.path: nothing at {shown}; check the path")
        found = [info]
        if info.type == pa.fs.FileType.Directory:
            selector = pa.fs.FileSelector(folder, recursive=True)
            found = [
                entry
                for entry in filesystem.get_file_info(selector)
                if entry.is_file
                and entry.path.endswith(suffixes)
                and fnmatch.fnmatch(entry.path, pattern)
                and not _hidden(entry, folder)
            ]
    except OSError as error:
        raise DataError(f"ingest.path: {shown} can't be listed ({reason(error)})") from None
    if not found:
        expected = " or ".join(suffixes)
        raise DataError(f"ingest.path: no {expected} file in {shown}; check ingest.format")
    return sorted((_log_file(entry) for entry in found), key=lambda file: file.path)


def _folder_of(root: str) -> tuple[str, str]:
    """The folder to search, and what paths must match: `*` stands for anything, also for `/`."""
    if "*" not in root:
        return root, "*"
    return root[: root.index("*")].rpartition("/")[0], root


def _log_file(entry: pa.fs.FileInfo) -> LogFile:
    return LogFile(path=entry.path, size=entry.size or 0, modified_ns=entry.mtime_ns or 0)


def _hidden(entry: pa.fs.FileInfo, root: str) -> bool:
    below = entry.path.removeprefix(root).split("/")
    return any(part.startswith((".", "_")) for part in below)


def fragments(
    config: LogsIngest, files: Sequence[LogFile], first_number: int = 0
) -> tuple[list[Fragment], list[BadFile]]:
    """The files cut into tasks, and those whose footers can't be read; footers alone are read."""
    bad = [BadFile(file, "it is empty") for file in files if not file.size]
    files = [file for file in files if file.size]
    if config.format == "csv":
        return [Fragment(first_number + i, file, None) for i, file in enumerate(files)], bad
    filesystem, _ = open_filesystem(config.path)
    found: list[Fragment] = []
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        footers = pool.map(lambda file: _footer(filesystem, file), files)
        for file, footer in zip(files, footers, strict=True):
            if isinstance(footer, BadFile):
                bad.append(footer)
            else:
                number = first_number + len(found)
                whole = config.time.monotone  # each row is compared with all before it
                found += _cut(file, footer, number, None if whole else _ROWS_PER_TASK)
    return found, bad


def _footer(filesystem: pa.fs.FileSystem, file: LogFile) -> pq.FileMetaData | BadFile:
    try:
        with _open_parquet(filesystem, file) as parquet:
            footer = parquet.metadata
    except (OSError, pa.ArrowException) as error:
        raise_unless_corrupt(error, file.path)
        return BadFile(file, reason(error))
    for group in range(footer.num_row_groups):
        rows = footer.row_group(group).num_rows
        if not 0 <= rows <= MAX_GROUP_ROWS:
            return BadFile(file, f"row group {group} has {rows} rows, at most {MAX_GROUP_ROWS}")
    return footer


def _cut(
    file: LogFile, footer: pq.FileMetaData, number: int, rows_per_task: int | None
) -> list[Fragment]:
    """Runs of row groups of about so many rows; None: all of them."""
    found: list[Fragment] = []
    groups: list[int] = []
    first_row = rows = 0
    for group in range(footer.num_row_groups):
        groups.append(group)
        rows += footer.row_group(group).num_rows
        is_full = rows_per_task is not None and rows >= rows_per_task
        if is_full or group == footer.num_row_groups - 1:
            found.append(Fragment(number + len(found), file, tuple(groups), first_row, rows))
            first_row, rows, groups = first_row + rows, 0, []
    return found


def state_fragments(files: Sequence[Path]) -> list[Fragment]:
    """Rows that an earlier ingest kept."""
    return [
        Fragment(i, file_at(str(path)), None, rows=pq.read_metadata(path).num_rows, state=True)
        for i, path in enumerate(files)
    ]


def file_at(path: str) -> LogFile:
    """A file or folder at a path or URL as it is now; of size 0 where there is none."""
    filesystem, inside = open_filesystem(path)
    return _log_file(filesystem.get_file_info(inside))


def file_schema(config: LogsIngest, fragment: Fragment) -> pa.Schema | None:
    """Columns and types of a fragment's file; None if it doesn't tell (CSV)."""
    if config.format == "csv" and not fragment.state:
        return None
    with _open(config, _filesystem(config, fragment), fragment) as file:
        return file.schema_arrow


def _filesystem(config: LogsIngest, fragment: Fragment) -> pa.fs.FileSystem:
    return open_filesystem(fragment.file.path if fragment.state else config.path)[0]


def read_chunks(
    config: LogsIngest, fragment: Fragment, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The columns of a fragment as they lie in its file, some rows at a time.

    Args:
        config: where the file is, and of which format.
        fragment: what to read.
        columns: which ones; None: all that the ingest needs.

    Raises:
        DataError: a column is missing, or the file changed since it was listed.
        OSError, pa.ArrowException: the file is corrupt.
    """
    filesystem = _filesystem(config, fragment)
    wanted = list(columns or (config.columns if fragment.state else config.in_files))
    if config.format == "csv" and not fragment.state:
        yield from _read_csv(filesystem, fragment.file.path, wanted, config.csv)
    else:
        with _open(config, filesystem, fragment) as file:
            _check_present(file.schema_arrow.names, wanted, fragment.file.path)
            for batch in file.iter_batches(
                _ROWS_PER_CHUNK, row_groups=fragment.row_groups, columns=wanted, use_threads=False
            ):
                yield pa.table(batch).select(wanted)
    _check_unchanged(filesystem, fragment.file)


def _read_csv(
    filesystem: pa.fs.FileSystem, path: str, wanted: list[str], csv: CsvFormat
) -> Iterator[pa.Table]:
    """All values as text."""
    parse = parse_options(csv, path)
    with filesystem.open_input_stream(path) as stream:
        names = pa.csv.open_csv(stream, parse_options=parse).schema.names
    if len(names) == 1 and len(wanted) > 1 and names[0] not in wanted:
        raise DataError(
            f"{path}: its first line has no {parse.delimiter!r}, expected columns "
            f"{', '.join(wanted[:3])}, ...; set ingest.csv.delimiter to what lies between fields"
        )
    _check_present(names, wanted, path)
    options = text_options(csv, wanted)
    with filesystem.open_input_stream(path) as stream:
        for batch in pa.csv.open_csv(stream, parse_options=parse, convert_options=options):
            yield pa.table(batch)


def _open(
    config: LogsIngest, filesystem: pa.fs.FileSystem, fragment: Fragment
) -> pq.ParquetFile | PetastormFile:
    if config.format != "petastorm" or fragment.state:
        return _open_parquet(filesystem, fragment.file)
    fields = read_fields(open_filesystem(config.path)[1], ArrowFSWrapper(filesystem))
    source = filesystem.open_input_file(fragment.file.path)
    return PetastormFile(fragment.file.path, fields, source)


def _open_parquet(filesystem: pa.fs.FileSystem, file: LogFile) -> pq.ParquetFile:
    source = filesystem.open_input_file(file.path)
    # INT96 as nanoseconds would wrap outside 1677 to 2262.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="ms")


def _check_present(found: Sequence[str], wanted: Sequence[str], path: str) -> None:
    for name in wanted:
        if name not in found:
            raise DataError(
                f"{path}: {unknown_name('column', name, found)}; rename it in the ingest section, "
                "or repair the file"
            )


def _check_unchanged(filesystem: pa.fs.FileSystem, file: LogFile) -> None:
    now = filesystem.get_file_info(file.path)
    if (now.size or 0, now.mtime_ns or 0) != (file.size, file.modified_ns):
        raise DataError(
            f"{file.path} changed while it was read; let its writer finish, then ingest again"
        )


def raise_unless_corrupt(error: Exception, path: str) -> None:
    """Raise DataError where it isn't the file's content that is wrong, but the way to it."""
    if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
        raise DataError(
            f"{path} can't be reached ({reason(error)}); run the same command again: it goes on "
            "where it stopped"
        ) from None


def reason(error: BaseException) -> str:
    """An error of Arrow or the system in one line."""
    return " ".join(str(error).split())
