"""Petastorm data sets as a Spark job of a team writes them, made without Spark."""

import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.contrib.petastorm.bridge import load_petastorm

SPARK_TYPES = {np.int64: "LongType", np.int32: "IntegerType", np.float32: "FloatType"}
SPARK_TYPES |= {
    np.float64: "DoubleType",
    np.int8: "ByteType",
    np.bool_: "BooleanType",
    np.str_: "StringType",
}


_TYPES = ModuleType("pyspark.sql.types")
for _name in SPARK_TYPES.values():
    setattr(_TYPES, _name, type(_name, (), {"__module__": _TYPES.__name__}))


@contextmanager
def pyspark() -> Iterator[None]:
    """A pyspark to pickle with, gone afterwards: readers have none."""
    modules = {name: ModuleType(name) for name in ("pyspark", "pyspark.sql", "pyspark.serializers")}
    modules[_TYPES.__name__] = _TYPES
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def scalar(name: str, dtype: type, nullable: bool = False) -> Any:
    """A field stored as it is."""
    from petastorm.codecs import ScalarCodec
    from petastorm.unischema import UnischemaField

    codec = ScalarCodec(getattr(_TYPES, SPARK_TYPES[dtype])())
    return UnischemaField(name, dtype, (), codec, nullable)


def array(name: str, dtype: type, codec: str, nullable: bool = False) -> Any:
    """A 1-D array of any length, packed by a codec."""
    from petastorm import codecs
    from petastorm.unischema import UnischemaField

    return UnischemaField(name, dtype, (None,), getattr(codecs, codec)(), nullable)


def write_set(
    folder: Path,
    table: pa.Table,
    fields: list[Any],
    *,
    rows_per_part: int = 40,
    row_group_rows: int = 7,
) -> None:
    """Encode with petastorm's codecs; write the rows and, last, the metadata beside them."""
    by_name = {field.name: field for field in fields}
    folder.mkdir(parents=True, exist_ok=True)
    packed = pa.table({name: _encoded(table[name], by_name[name]) for name in by_name})
    row_groups = {}
    for number, start in enumerate(range(0, len(table), rows_per_part)):
        name = f"part-{number:05d}-1f.c000.snappy.parquet"
        part = packed.slice(start, rows_per_part)
        pq.write_table(part, folder / name, row_group_size=row_group_rows, compression="snappy")
        row_groups[name] = pq.read_metadata(folder / name).num_row_groups
    (folder / "_SUCCESS").touch()
    from petastorm.unischema import Unischema

    with pyspark():
        declared = [field for field in fields if hasattr(field, "codec")]
        pickled = pickle.dumps(Unischema("Rows", declared))
    write_metadata(folder, packed.schema, pickled, row_groups)


def write_metadata(
    folder: Path, schema: pa.Schema, unischema: bytes, row_groups: Mapping[str, int]
) -> None:
    """`_common_metadata` with a pickle and the row groups of each file."""
    metadata = {
        b"dataset-toolkit.unischema.v1": unischema,
        b"dataset-toolkit.num_row_groups_per_file.v1": json.dumps(dict(row_groups)).encode(),
    }
    pq.write_metadata(schema.with_metadata(metadata), folder / "_common_metadata")


def _encoded(column: pa.ChunkedArray, field: Any) -> pa.Array:
    if not field.shape:
        return column.combine_chunks()
    values = column.to_pylist()
    packed = [
        None if v is None else bytes(field.codec.encode(field, np.array(v, field.numpy_dtype)))
        for v in values
    ]
    return pa.array(packed, pa.binary())


load_petastorm()
