"""Row groups of Petastorm data sets -> Arrow tables; arrays packed by a codec become lists.

Only the Unischema and the codecs of petastorm are used, not its readers: those distribute whole row
groups, so ranks get unequal numbers of rows; they can't resume from a position; and they convert
single rows by pandas, where a null text becomes 'nan'. Here a whole column is decoded: a codec
unpacks each array, and Arrow casts the column as ScalarCodec casts a value.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.contrib.petastorm.bridge import load_petastorm, parquet_files
from infnet_dist.contrib.petastorm.npy import unpack, unpack_compressed
from infnet_dist.errors import DataError, unknown_name

UNISCHEMA_FILE = "_common_metadata"
UNISCHEMA_KEY = b"dataset-toolkit.unischema.v1"
_FASTER = {"NdarrayCodec": unpack, "CompressedNdarrayCodec": unpack_compressed}
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def read_petastorm_tables(url: str | Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a Petastorm data set, one table per row group, in the order of files and rows.

    A set without a Unischema, as `make_batch_reader` reads, is read by its Parquet types.

    Args:
        url: folder of the set, or a URL that fsspec supports.
        columns: fields to read: scalars, 1-D arrays (which become lists), or partition keys.

    Yields:
        Tables with just these columns, in this order.

    Raises:
        DataError: no such set, no such column, one with more dimensions, or a value that can't be
            decoded; names the file, the row group and the column.
    """
    filesystem, root = fsspec.core.url_to_fs(str(url))
    files = parquet_files(filesystem, root)
    if not files:
        raise DataError(f"no Parquet files in {url}; expected the folder of a Petastorm data set")
    fields = read_fields(root, filesystem)
    for path in files:
        try:
            with filesystem.open(path) as source, PetastormFile(path, fields, source) as file:
                for index in range(file.num_row_groups):
                    yield file.read_row_group(index, columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"can't read {path}: {error}; write it again") from None


class PetastormFile:
    """One Parquet file of a Petastorm data set, with the interface of `pq.ParquetFile`.

    Args:
        path: path of the file, for messages and partition keys.
        fields: fields of the Unischema by name; empty if the set has none.
        source: the open file; None: opened from `path`.
    """

    def __init__(self, path: str | Path, fields: Mapping[str, Any], source: Any = None) -> None:
        """Open the file and read its footer."""
        self._path = path
        self._fields = fields
        self._file = pq.ParquetFile(
            path if source is None else source,
            # INT96 (old timestamps of Spark) as nanoseconds would overflow outside 1677 to 2262.
            coerce_int96_timestamp_unit="us",
            page_checksum_verification=True,
        )
        self._keys = _partition_keys(Path(path))
        names = self._file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(
                f"{path} has {len(twice)} columns {twice[0]!r}, expected one; write the file again"
            )
        self.metadata = self._file.metadata
        self.num_row_groups = self._file.num_row_groups

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    @property
    def schema_arrow(self) -> pa.Schema:
        """The types of the decoded columns, including partition keys."""
        stored = self._file.schema_arrow
        types = {
            name: _decoded_type(stored.field(name).type, self._fields.get(name))
            for name in stored.names
        }
        types |= {name: self._partition_column(name, 0).type for name in self._keys}
        return pa.schema(types)

    def read_row_group(
        self, index: int, columns: Sequence[str], use_threads: bool = False
    ) -> pa.Table:
        """These columns of a row group, decoded.

        Raises:
            DataError: a column doesn't exist or has too many dimensions, or a value is corrupt.
        """
        stored = self._file.schema_arrow.names
        known = {*stored, *self._keys}
        for name in columns:
            if name not in known:
                raise DataError(f"{self._path}: {unknown_name('column', name, known)}")
        packed = [name for name in columns if name in stored]
        table = self._file.read_row_group(index, columns=packed, use_threads=use_threads)
        rows = self.metadata.row_group(index).num_rows
        found = {}
        for name in columns:
            if name in stored:
                where = f"{self._path}, row group {index}, column {name!r}"
                found[name] = decode_column(table[name], self._fields.get(name), where)
            else:
                found[name] = self._partition_column(name, rows)
        return pa.table(found)

    def iter_batches(
        self,
        batch_size: int,
        *,
        columns: Sequence[str],
        row_groups: Sequence[int] | None = None,
        use_threads: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of at most `batch_size` rows; errors as in `read_row_group`."""
        for index in range(self.num_row_groups) if row_groups is None else row_groups:
            table = self.read_row_group(index, columns, use_threads)
            yield from table.to_batches(batch_size)

    def _partition_column(self, name: str, rows: int) -> pa.Array:
        """A column with the value in the name of the partition folder."""
        text, field = self._keys[name], self._fields.get(name)
        if field is not None:
            wanted = _scalar_type(field) or pa.string()
        else:  # inferred as in pyarrow and petastorm
            wanted = pa.int64() if text is not None and text.lstrip("-").isdigit() else pa.string()
        return pa.array([text] * rows, pa.string()).cast(wanted)


def read_fields(root: str | Path, filesystem: Any = None) -> Mapping[str, Any]:
    """The fields of the Unischema of a data set by name; empty if it has none.

    Raises:
        DataError: the Unischema can't be read, or contains objects that no Unischema needs.
    """
    load_petastorm()
    from petastorm.etl.legacy import depickle_legacy_package_name_compatible as load

    filesystem = filesystem or fsspec.filesystem("file")
    path = f"{root}/{UNISCHEMA_FILE}"
    if not filesystem.isfile(path):
        return {}
    try:
        with filesystem.open(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return load(metadata[UNISCHEMA_KEY]).fields if UNISCHEMA_KEY in metadata else {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"can't read {path}: {error}; write it again") from None
    except pickle.UnpicklingError as error:
        raise DataError(
            f"the Unischema in {path} {error}; write it again from its source"
        ) from None


def fields_beside(path: Path) -> Mapping[str, Any]:
    """The fields of the set of a file; folders named key=value are part of the set."""
    root = path.parent
    while "=" in root.name:
        root = root.parent
    return _fields_once(root)


_fields_once = lru_cache(maxsize=64)(read_fields)


def decode_column(column: pa.ChunkedArray, field: Any, where: str) -> pa.ChunkedArray | pa.Array:
    """Decode a column by its codec; unchanged without a field.

    Args:
        column: as stored.
        field: its UnischemaField, or None.
        where: file, row group and column, for messages.

    Raises:
        DataError: arrays have several dimensions, or a value can't be decoded.
    """
    if not _is_packed(field):
        wanted = _decoded_type(column.type, field)
        try:
            return column.cast(wanted)
        except pa.ArrowException as error:
            raise DataError(f"{where}: {error}; the Unischema says {wanted}") from None
    item = _scalar_type(field)
    if len(field.shape) != 1 or item is None:
        kind = np.dtype(field.numpy_dtype).name
        raise DataError(
            f"{where} has {kind} arrays of shape {field.shape}, expected a scalar or a 1-D array "
            "of numbers or text; leave it out"
        )
    arrays = []
    for row, value in enumerate(column.to_pylist()):
        try:
            arrays.append(None if value is None else _unpacked(value, field))
        except Exception as error:  # whatever numpy meets in broken bytes
            raise DataError(
                f"{where}, row {row} can't be decoded: {error}; write it again"
            ) from None
    try:
        return _lists(arrays, item)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{where}: {error}; the Unischema says 1-D arrays of {item}") from None


def _unpacked(value: bytes, field: Any) -> Any:
    """The value as unpacked by the codec of the field; plain arrays by faster code of ours."""
    faster = _FASTER.get(type(field.codec).__name__)
    found = faster(value) if faster is not None else None
    return field.codec.decode(field, value) if found is None else found


def _is_packed(field: Any) -> bool:
    """Whether a codec has packed the values into bytes."""
    codec = getattr(field, "codec", None)
    return codec is not None and type(codec).__name__ != "ScalarCodec"


def _lists(arrays: list[Any], item: pa.DataType) -> pa.ListArray:
    """One list per row, null for a missing array."""
    known = [array for array in arrays if array is not None]
    together = np.concatenate(known) if known else np.empty(0, np.int64)
    if together.ndim != 1:
        raise ValueError(f"got arrays of {together.ndim} dimensions")
    values = pa.array(together.astype(together.dtype.newbyteorder("="), copy=False))
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    missing = pa.array([array is None for array in arrays])
    return pa.ListArray.from_arrays(offsets, values.cast(item), mask=missing)


def _decoded_type(stored: pa.DataType, field: Any) -> pa.DataType:
    if _is_packed(field):
        item = _scalar_type(field)
        return stored if item is None or len(field.shape) != 1 else pa.list_(item)
    wanted = None if field is None or field.shape else _scalar_type(field)
    return wanted or stored


def _scalar_type(field: Any) -> pa.DataType | None:
    """The Arrow type of a field of numbers or text; None for decimals and times."""
    kind = np.dtype(field.numpy_dtype).kind
    if kind in "biuf":
        return pa.from_numpy_dtype(np.dtype(field.numpy_dtype))
    return {"U": pa.string(), "S": pa.binary()}.get(kind)


def _partition_keys(path: Path) -> dict[str, str | None]:
    pairs = [folder.split("=", 1) for folder in path.parts[:-1] if "=" in folder]
    return {key: None if text == _NO_VALUE else unquote(text) for key, text in pairs}
