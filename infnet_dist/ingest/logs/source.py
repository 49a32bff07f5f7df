"""The rows of logs: of local files and URLs, Parquet, CSV or Petastorm.

URLs are Arrow's (s3://bucket/logs?endpoint_override=host:port&scheme=http, gs://, hdfs://) or any
that fsspec knows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper

from infnet_dist.data.manifest import LogFile
from infnet_dist.data.petastorm_file import PetastormFile, read_fields
from infnet_dist.errors import DataError
from infnet_dist.filesystem import open_filesystem
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.logs_config import LogsIngest

_ROWS_PER_CHUNK = 131_072
_CSV_BLOCK = 8 << 20  # bytes of text parsed at once: a row can't be longer
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


@dataclass(frozen=True)
class Fragment:
    """What one task reads: some row groups of a file, or (row_groups None) all of it.

    Attributes:
        number: of the fragment; part of each row's key.
        first_row: rows of the file before it.
        rows: rows in it; of CSV about so many.
        time_floor: the latest time in the row groups before it, if their footers tell.
        state: whether an earlier ingest wrote it, beside the training set.
    """

    number: int
    file: LogFile
    row_groups: tuple[int, ...] | None
    first_row: int = 0
    rows: int = 0
    time_floor: int | datetime | None = None
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


def read_chunks(config: LogsIngest, fragment: Fragment) -> Iterator[pa.Table]:
    """The columns of a fragment as they lie in its file, some rows at a time.

    Raises:
        DataError: a column is missing, or the file changed since it was listed.
        OSError, pa.ArrowException: the file is corrupt.
    """
    filesystem = _filesystem(config, fragment)
    wanted = list(config.columns if fragment.state else config.in_files)
    if config.format == "csv" and not fragment.state:
        yield from _read_csv(filesystem, fragment.file.path, wanted)
    else:
        with _open(config, filesystem, fragment) as file:
            check_columns(file.schema_arrow.names, wanted, fragment.file.path)
            for batch in file.iter_batches(
                _ROWS_PER_CHUNK, row_groups=fragment.row_groups, columns=wanted, use_threads=False
            ):
                yield pa.table(batch).select(wanted)
    _check_unchanged(filesystem, fragment.file)


def _read_csv(filesystem: pa.fs.FileSystem, path: str, wanted: list[str]) -> Iterator[pa.Table]:
    """All values as text: what they should be is for `clean` to say, row by row."""
    layout = {
        "read_options": pa.csv.ReadOptions(block_size=_CSV_BLOCK),
        "parse_options": pa.csv.ParseOptions(
            delimiter="\t" if ".tsv" in path.lower() else ",", newlines_in_values=True
        ),
    }
    with filesystem.open_input_file(path) as file:
        names = pa.csv.open_csv(open_text(file, path), **layout).schema.names
    check_columns(names, wanted, path)
    options = pa.csv.ConvertOptions(
        include_columns=wanted,
        column_types=dict.fromkeys(wanted, pa.large_string()),
        null_values=["", "NaN", "nan", "NULL", "null", "None"],
        strings_can_be_null=True,
    )
    with filesystem.open_input_file(path) as file:
        for batch in pa.csv.open_csv(open_text(file, path), convert_options=options, **layout):
            yield pa.table(batch)


def open_text(file: pa.NativeFile, path: str) -> pa.NativeFile:
    """A file, unpacked if its name says that it is compressed."""
    codec = next((c for ending, c in _CODECS.items() if path.lower().endswith(ending)), None)
    return pa.CompressedInputStream(file, codec) if codec else file


def _open(
    config: LogsIngest, filesystem: pa.fs.FileSystem, fragment: Fragment
) -> pq.ParquetFile | PetastormFile:
    if config.format != "petastorm" or fragment.state:
        return open_parquet(filesystem, fragment.file)
    fields = read_fields(open_filesystem(config.path)[1], ArrowFSWrapper(filesystem))
    source = filesystem.open_input_file(fragment.file.path)
    return PetastormFile(fragment.file.path, fields, source)


def open_parquet(filesystem: pa.fs.FileSystem, file: LogFile) -> pq.ParquetFile:
    """A Parquet file; its footer is read."""
    return pq.ParquetFile(filesystem.open_input_file(file.path))


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
        return f"a row has more than {_CSV_BLOCK:,} bytes; is a quote never closed?"
    return text
