"""Parts of a training set that are files of a Petastorm data set: `data.reader=petastorm`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.part_file import UNISCHEMA_FILE, PetastormFile, fields_beside
from infnet_dist.data.manifest import arrow_type
from infnet_dist.data.part_files import OpenPart
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema


def part_opener(schema: Schema) -> OpenPart:
    """The function that opens parts.

    Raises:
        DataError: petastorm isn't installed.
    """
    load_petastorm()
    return partial(PetastormPart, schema=schema)


class PetastormPart(PetastormFile):
    """A file of a Petastorm data set, in the types of a training set."""

    def __init__(self, path: Path, source: pa.NativeFile | None = None, *, schema: Schema) -> None:
        """Open the file and the Unischema of its data set."""
        super().__init__(path, fields_beside(path), source)
        self._schema = schema

    @property
    def schema_arrow(self) -> pa.Schema:
        """The types of a training set; the stored type of a column that can't be cast."""
        types = {}
        for field in super().schema_arrow:
            wanted = arrow_type(self._schema, field.name)
            try:
                _cast(pa.array([], field.type), wanted)
                types[field.name] = wanted
            except pa.ArrowException:
                types[field.name] = field.type
        return pa.schema(types)

    def read_row_group(
        self, index: int, columns: Sequence[str], use_threads: bool = False
    ) -> pa.Table:
        """These columns of a row group, decoded and cast.

        Raises:
            DataError: as `PetastormFile`; or a column can't be cast.
        """
        table = super().read_row_group(index, columns, use_threads)
        where = f"{self._path}, row group {index}"
        cast = {}
        for name in columns:
            wanted = arrow_type(self._schema, name)
            try:
                cast[name] = _cast(table[name], wanted)
            except pa.ArrowException as error:
                hint = "" if self._fields else f"; no Unischema in a {UNISCHEMA_FILE} beside it"
                raise DataError(
                    f"{where}, column {name!r} is {table[name].type}, expected {wanted} "
                    f"({error}){hint}"
                ) from None
        return pa.table(cast)


def _cast(values: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Cast numbers; NaN becomes null, since petastorm doesn't distinguish them."""
    if pa.types.is_temporal(values.type):
        raise pa.ArrowTypeError("a time isn't a number")
    if pa.types.is_floating(values.type) and pa.types.is_integer(wanted):
        _check_exact(values)
    values = values.cast(wanted)
    if not pa.types.is_floating(wanted):
        return values
    return pc.if_else(pc.is_nan(values), None, values)


def _check_exact(floats: pa.Array | pa.ChunkedArray) -> None:
    """Raise ArrowInvalid for floats that are too large to be exact integers."""
    limit = 2.0**53 if pa.types.is_float64(floats.type) else 2.0**24
    large = pc.greater_equal(pc.abs(floats.cast(pa.float64())), limit)
    if pc.any(large, min_count=0).as_py():
        raise pa.ArrowInvalid(f"a {floats.type} isn't exact from {limit:.0f} on")
