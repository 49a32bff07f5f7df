"""Reads CSV files of logs and side tables: every field as bytes, which should be UTF-8."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs

from infnet_dist.config.log_columns import CsvFormat
from infnet_dist.errors import DataError
from infnet_dist.ingest.column_names import check_columns

BLOCK_BYTES = 8 << 20  # parsed at once: the maximum length of a row
_TAB = (".tsv", ".tab")
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


def is_csv(path: str) -> bool:
    """Whether the name of a side table is that of a CSV file."""
    return _ending(path).endswith((".csv", *_TAB))


def read_texts(
    filesystem: pa.fs.FileSystem,
    path: str,
    wanted: Sequence[str],
    csv: CsvFormat,
    shown: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """These columns in batches of rows; `clean` converts them and checks each row.

    They are large_binary: one value that isn't UTF-8 must not make the file unreadable.

    Args:
        filesystem: filesystem of the file.
        path: path of the file; its ending gives the compression.
        wanted: names of the columns.
        csv: format of the file.
        shown: name of the file in messages.

    Raises:
        DataError: a column is missing or appears twice; or the first line isn't UTF-8.
        OSError, pa.ArrowException: the file is corrupt.
    """
    delimiter, layout = _layout(path, csv)
    names = read_names(filesystem, path, csv, shown)
    if len(names) == 1 and len(wanted) > 1 and names[0] not in wanted:
        raise DataError(
            f"{shown or path}: the first line contains no {delimiter!r}, expected columns "
            f"{', '.join(wanted[:3])}, ...; set ingest.csv.delimiter to the separator of fields"
        )
    check_columns(names, wanted, shown or path)
    options = pa.csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.large_binary()),
        null_values=list(csv.nulls),
        strings_can_be_null=True,
    )
    with filesystem.open_input_file(path) as file:
        yield from pa.csv.open_csv(open_text(file, path), convert_options=options, **layout)


def read_names(
    filesystem: pa.fs.FileSystem, path: str, csv: CsvFormat, shown: str | None = None
) -> list[str]:
    """The names of the columns, from the first line; arguments as of `read_texts`.

    Raises:
        DataError: the first line isn't UTF-8.
        OSError, pa.ArrowException: the file is empty or corrupt.
    """
    with filesystem.open_input_file(path) as file:
        schema = pa.csv.open_csv(open_text(file, path), **_layout(path, csv)[1]).schema
    return _names(schema, shown or path)


def _layout(path: str, csv: CsvFormat) -> tuple[str, dict[str, Any]]:
    """The delimiter, and the options of Arrow's reader."""
    delimiter = csv.delimiter or ("\t" if _ending(path).endswith(_TAB) else ",")
    return delimiter, {
        "read_options": pa.csv.ReadOptions(block_size=BLOCK_BYTES),
        "parse_options": pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    }


def _names(schema: pa.Schema, shown: str) -> list[str]:
    try:
        return list(schema.names)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown}: the first line isn't UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None


def open_text(file: pa.NativeFile, path: str) -> pa.NativeFile:
    """The file, decompressed if its ending is that of a compression."""
    codec = next((c for ending, c in _CODECS.items() if path.lower().endswith(ending)), None)
    return pa.CompressedInputStream(file, codec) if codec else file


def _ending(path: str) -> str:
    """The name in lower case without the ending of a compression."""
    name = path.split("?")[0].lower()
    for compression in _CODECS:
        name = name.removesuffix(compression)
    return name
