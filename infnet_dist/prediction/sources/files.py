"""Files of prepared rows as input, at a path or URL: Parquet, or CSV without lists."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from infnet_dist.config.log_columns import CsvFormat
from infnet_dist.data.checks.fingerprint import fingerprint
from infnet_dist.data.manifest import MANIFEST, arrow_type
from infnet_dist.errors import DataError
from infnet_dist.ingest.listing import CSV, PARQUET
from infnet_dist.ingest.logs.reading.csv_text import read_names, read_texts
from infnet_dist.io.filesystem import open_filesystem
from infnet_dist.io.urls import without_secrets
from infnet_dist.prediction.sources.prepared import (
    PREPARED,
    check_prepared,
    from_text,
    list_columns,
    needed_columns,
    prepare,
)
from infnet_dist.prediction.sources.source import (
    InputFile,
    InputGroup,
    InputRows,
    check_same_types,
    group_sizes,
    key_columns,
    types_of_keys,
)
from infnet_dist.schema import Schema

_AT_ONCE = 16
_BLOCK = 1 << 20
_CSV = CsvFormat()
_AGAIN = "then run the same command again: finished parts are kept"


@dataclass(frozen=True)
class FileSource:
    """Files below a path or URL.

    Attributes:
        url: of a file or folder.
        kind: their format. A row group of CSV is a block of text; a worker that reads one parses
            the file up to it.
        schema: the columns to read.
        files: the files.
        key_types: types of the key columns.
    """

    url: str
    kind: Literal["parquet", "csv"]
    schema: Schema
    files: tuple[InputFile, ...]
    key_types: dict[str, pa.DataType]

    @property
    def place(self) -> str:
        """The URL without secrets."""
        return without_secrets(self.url)

    @property
    def advice(self) -> str:
        """Values out of range are often those of rows that weren't prepared."""
        return f"; {PREPARED}"

    def read(self, groups: Iterable[InputGroup]) -> Iterator[InputRows]:
        """See `Source.read`."""
        filesystem, root = open_filesystem(self.url)
        read = _parquet_groups if self.kind == "parquet" else self._csv_blocks
        columns = list(dict.fromkeys([*needed_columns(self.schema), *self.key_types]))
        for number, together in groupby(groups, key=lambda group: group.file):
            file, asked = self.files[number], list(together)
            tables = read(filesystem, path_of(root, file.name), file, asked, columns)
            for group, table in zip(asked, tables, strict=True):
                where = f"{file.name}, row group {group.number}"
                features = prepare(table, self.schema, where)
                start = sum(file.row_groups[: group.number])
                numbers = pa.array(np.arange(start, start + group.rows))
                yield InputRows(features, key_columns(table, self.key_types), numbers)

    def _csv_blocks(
        self,
        filesystem: pa.fs.FileSystem,
        path: str,
        file: InputFile,
        groups: Sequence[InputGroup],
        columns: Sequence[str],
    ) -> Iterator[pa.Table]:
        """Blocks of a CSV file, features in the schema's types and other keys as text."""
        needed = needed_columns(self.schema)
        types = [
            (name, arrow_type(self.schema, name) if name in needed else pa.string())
            for name in columns
        ]
        left = {group.number for group in groups}
        with _readable(file.name), _unchanged(filesystem, path, file.name):
            for index, block in enumerate(read_texts(filesystem, path, columns, _CSV, file.name)):
                if index >= len(file.row_groups) or len(block) != file.row_groups[index]:
                    raise _changed(file.name)
                if index in left:
                    left.remove(index)
                    start = sum(file.row_groups[:index])
                    where = f"{file.name}, rows {start:,} to {start + len(block) - 1:,}"
                    yield from_text(pa.table(block), types, where)
                if not left:
                    return


def open_files(url: str, schema: Schema, keys: Sequence[str]) -> FileSource:
    """List the files at a path or URL, and check columns, types and sizes.

    Raises:
        DataError: there is none, or one can't be read, or lacks a column; names it.
    """
    filesystem, root = open_filesystem(url)
    shown = without_secrets(url)
    names, kind = _list(filesystem, root, shown)
    if kind == "csv" and (lists := list_columns(schema)):
        raise DataError(
            f"{shown} is CSV, but the model reads lists ({', '.join(lists[:3])}), which CSV can't "
            "hold; use Parquet"
        )
    describe = partial(_describe_parquet if kind == "parquet" else _describe_csv, filesystem, root)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda name: describe(name, schema, keys), names))
    for name, other in zip(names, found, strict=True):
        check_same_types(found[0].key_types, other.key_types, name)
    files = tuple(one.file for one in found)
    return FileSource(url, kind, schema, files, found[0].key_types)


def path_of(root: str, name: str) -> str:
    """Path of a file of an input: `root` is that of the file, or of its folder."""
    return root if root.rpartition("/")[2] == name else f"{root.rstrip('/')}/{name}"


def _list(
    filesystem: pa.fs.FileSystem, root: str, shown: str
) -> tuple[list[str], Literal["parquet", "csv"]]:
    """Names of the files in order, and their format."""
    try:
        info = filesystem.get_file_info(root)
        if info.type == pa.fs.FileType.NotFound:
            raise DataError(f"--input: {shown} doesn't exist; check the path")
        if info.type == pa.fs.FileType.Unknown:
            raise DataError(f"--input: {shown} isn't a regular file; name a file or a folder")
        if info.type == pa.fs.FileType.File:
            return [info.base_name], "csv" if info.base_name.lower().endswith(CSV) else "parquet"
        selector = pa.fs.FileSelector(root, recursive=True)
        inside = [i for i in filesystem.get_file_info(selector) if i.type == pa.fs.FileType.File]
    except OSError as error:
        raise DataError(f"--input: {shown} can't be read ({_reason(error)})") from None
    names = sorted(info.path[len(root.rstrip("/")) + 1 :] for info in inside)
    if MANIFEST in names:
        raise DataError(
            f"--input: {shown} is a training set; set data.path to it and use --split, or name a "
            "folder of Parquet files in it"
        )
    seen = [n for n in names if not any(p.startswith((".", "_")) for p in n.split("/"))]
    parquet, csv = ([n for n in seen if n.lower().endswith(kind)] for kind in (PARQUET, CSV))
    if bool(parquet) == bool(csv):
        what = "both Parquet and CSV files" if csv else "no Parquet and no CSV file"
        raise DataError(f"--input: {shown} has {what}; name a file, or a folder of one format")
    return parquet or csv, "parquet" if parquet else "csv"


class _Description(NamedTuple):
    file: InputFile
    key_types: dict[str, pa.DataType]


def _describe_parquet(
    filesystem: pa.fs.FileSystem, root: str, name: str, schema: Schema, keys: Sequence[str]
) -> _Description:
    with _readable(name), filesystem.open_input_file(path_of(root, name)) as source:
        identity, file = fingerprint(source), pq.ParquetFile(source)
        check_prepared(file.schema_arrow, schema, name)
        footer = file.metadata
        sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        types = types_of_keys(file.schema_arrow, keys, name)
    return _Description(InputFile(name, identity, group_sizes(name, sizes)), types)


def _describe_csv(
    filesystem: pa.fs.FileSystem, root: str, name: str, schema: Schema, keys: Sequence[str]
) -> _Description:
    path = path_of(root, name)
    with _readable(name):
        needed = needed_columns(schema)
        types = {column: arrow_type(schema, column) for column in needed}
        header = read_names(filesystem, path, _CSV, name)
        columns = [pa.field(column, types.get(column, pa.string())) for column in header]
        check_prepared(pa.schema(columns), schema, name)
        key_types = types_of_keys(pa.schema(columns), keys, name)
        blocks = [len(block) for block in read_texts(filesystem, path, needed[:1], _CSV, name)]
        identity = _csv_fingerprint(filesystem, path)
    return _Description(InputFile(name, identity, group_sizes(name, blocks)), key_types)


def _csv_fingerprint(filesystem: pa.fs.FileSystem, path: str) -> str:
    """Size and SHA-256 of all bytes."""
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return f"{size}:{digest.hexdigest()}"


def _parquet_groups(
    filesystem: pa.fs.FileSystem,
    path: str,
    file: InputFile,
    groups: Sequence[InputGroup],
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    where = file.name
    try:
        with _unchanged(filesystem, path, file.name), filesystem.open_input_file(path) as source:
            if fingerprint(source) != file.fingerprint:
                raise _changed(file.name)
            opened = pq.ParquetFile(source, page_checksum_verification=True)
            for group in groups:
                where = f"row group {group.number} of {file.name}"
                table = opened.read_row_group(group.number, columns=columns, use_threads=False)
                if any(len(column) != group.rows for column in table.columns):
                    raise DataError(f"{where} hasn't the {group.rows} rows that its footer says")
                yield table
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"can't read {where}: {_reason(error)}; repair it, {_AGAIN}") from None


@contextmanager
def _unchanged(filesystem: pa.fs.FileSystem, path: str, name: str) -> Iterator[None]:
    """Check that a file has the same size and time after it was read as before."""
    before = _state(filesystem, path)
    yield
    if _state(filesystem, path) != before:
        raise _changed(name)


def _state(filesystem: pa.fs.FileSystem, path: str) -> tuple[int | None, int | None]:
    info = filesystem.get_file_info(path)
    return info.size, info.mtime_ns


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} can't be read ({_reason(error)}); {PREPARED}") from None


def _changed(name: str) -> DataError:
    return DataError(f"{name} changed while it was read; wait for its writer, and start again")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())
