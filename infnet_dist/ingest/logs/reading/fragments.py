"""Reads fragments of log files: local or remote, in Parquet, CSV or Petastorm format.

URLs are those of Arrow (s3://bucket/logs?endpoint_override=host:port&scheme=http, gs://, hdfs://)
or of fsspec.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import LogFile
from infnet_dist.errors import DataError
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.ingest.logs.reading.csv_text import BLOCK_BYTES, read_texts
from infnet_dist.io.contrib import load_contrib
from infnet_dist.io.filesystem import open_filesystem

_ROWS_PER_CHUNK = 131_072


@dataclass(frozen=True)
class Fragment:
    """The input of one task: some row groups of a file, or (row_groups None) all of it.

    Attributes:
        number: number of the fragment.
        first_row: number of rows of the file before it.
        rows: number of its rows; approximate for CSV.
        state: whether an earlier ingest wrote the file as state of the training set.
    """

    number: int
    file: LogFile
    row_groups: tuple[int, ...] | None
    first_row: int = 0
    rows: int = 0
    state: bool = False


def file_at(path: str) -> LogFile:
    """Current size and time of a file or folder at a path or URL; size 0 if it doesn't exist."""
    filesystem, inside = open_filesystem(path)
    found = filesystem.get_file_info(inside)
    return LogFile(path=found.path, size=found.size or 0, modified_ns=found.mtime_ns or 0)


def file_schema(config: LogsIngest, fragment: Fragment) -> pa.Schema | None:
    """Columns and types of the file of a fragment; None for CSV."""
    if config.format == "csv" and not fragment.state:
        return None
    with _open(config, _filesystem(config, fragment), fragment) as file:
        return file.schema_arrow


def _filesystem(config: LogsIngest, fragment: Fragment) -> pa.fs.FileSystem:
    return open_filesystem(fragment.file.path if fragment.state else config.path)[0]


def read_chunks(
    config: LogsIngest,
    fragment: Fragment,
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> Iterator[pa.Table]:
    """The columns of a fragment as stored, in chunks of rows.

    Args:
        config: path and format of the logs.
        fragment: the fragment to read.
        columns: names of the columns; None: all that the ingest needs.
        max_rows: rows per chunk; None: as many as suit most logs.

    Raises:
        DataError: a column is missing, or the file changed since it was listed.
        OSError, pa.ArrowException: the file is corrupt.
    """
    filesystem = _filesystem(config, fragment)
    rows = min(max_rows or _ROWS_PER_CHUNK, _ROWS_PER_CHUNK)
    wanted = list(columns or (config.columns if fragment.state else config.in_files))
    if config.format == "csv" and not fragment.state:
        for batch in read_texts(filesystem, fragment.file.path, wanted, config.csv):
            step = max_rows or max(len(batch), 1)
            for first in range(0, max(len(batch), 1), step):
                yield pa.table(batch.slice(first, step))
    else:
        with _open(config, filesystem, fragment) as file:
            check_columns(file.schema_arrow.names, wanted, fragment.file.path)
            for batch in file.iter_batches(
                rows, row_groups=fragment.row_groups, columns=wanted, use_threads=False
            ):
                yield pa.table(batch).select(wanted)
    _check_unchanged(filesystem, fragment.file)


def _open(config: LogsIngest, filesystem: pa.fs.FileSystem, fragment: Fragment) -> pq.ParquetFile:
    if config.format != "petastorm" or fragment.state:
        return open_parquet(filesystem, fragment.file)
    petastorm = load_contrib("petastorm.part_file")
    fields = petastorm.read_fields(open_filesystem(config.path)[1], ArrowFSWrapper(filesystem))
    source = filesystem.open_input_file(fragment.file.path)
    return petastorm.PetastormFile(fragment.file.path, fields, source)


def open_parquet(filesystem: pa.fs.FileSystem, file: LogFile) -> pq.ParquetFile:
    """Open a Parquet file and read its footer."""
    source = filesystem.open_input_file(file.path)
    # INT96 as nanoseconds would wrap outside 1677 to 2262.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="ms")


def _check_unchanged(filesystem: pa.fs.FileSystem, file: LogFile) -> None:
    now = filesystem.get_file_info(file.path)
    if (now.size or 0, now.mtime_ns or 0) != (file.size, file.modified_ns):
        raise DataError(
            f"{file.path} changed while it was read; wait for its writer, then ingest again"
        )


def raise_unless_corrupt(error: Exception, path: str) -> None:
    """Raise DataError if the cause is access to the file, not its content."""
    if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
        raise DataError(
            f"{path} can't be reached ({reason(error)}); run the same command again to resume"
        ) from None


def reason(error: BaseException) -> str:
    """The message of an error of Arrow or the system, in one line."""
    text = " ".join(str(error).split())
    if "straddl" in text:  # Arrow names a setting that users can't change
        return f"a row has more than {BLOCK_BYTES:,} bytes; check for an unclosed quote"
    return text
