"""The rows of logs: of local files and URLs, Parquet, CSV or Petastorm.

URLs are Arrow's (s3://bucket/logs?endpoint_override=host:port&scheme=http, gs://, hdfs://) or any
that fsspec knows.
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
from infnet_dist.ingest.logs.csv_text import BLOCK_BYTES, read_texts
from infnet_dist.io.contrib import load_contrib
from infnet_dist.io.filesystem import open_filesystem

_ROWS_PER_CHUNK = 131_072


@dataclass(frozen=True)
class Fragment:
    """What one task reads: some row groups of a file, or (row_groups None) all of it.

    Attributes:
        number: of the fragment; part of each row's key.
        first_row: rows of the file before it.
        rows: rows in it; of CSV about so many.
        state: whether an earlier ingest wrote it, beside the training set.
    """

    number: int
    file: LogFile
    row_groups: tuple[int, ...] | None
    first_row: int = 0
    rows: int = 0
    state: bool = False


def file_at(path: str) -> LogFile:
    """A file or folder at a path or URL as it is now; of size 0 where there is none."""
    filesystem, inside = open_filesystem(path)
    found = filesystem.get_file_info(inside)
    return LogFile(path=found.path, size=found.size or 0, modified_ns=found.mtime_ns or 0)


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
        for batch in read_texts(filesystem, fragment.file.path, wanted, config.csv):
            yield pa.table(batch)
    else:
        with _open(config, filesystem, fragment) as file:
            check_columns(file.schema_arrow.names, wanted, fragment.file.path)
            for batch in file.iter_batches(
                _ROWS_PER_CHUNK, row_groups=fragment.row_groups, columns=wanted, use_threads=False
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
    """A Parquet file; its footer is read."""
    source = filesystem.open_input_file(file.path)
    # INT96 as nanoseconds would wrap outside 1677 to 2262.
    return pq.ParquetFile(source, coerce_int96_timestamp_unit="ms")


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
    text = " ".join(str(error).split())
    if "straddl" in text:  # Arrow's advice is about a setting that isn't one of ours
        return f"a row has more than {BLOCK_BYTES:,} bytes; is a quote never closed?"
    return text
