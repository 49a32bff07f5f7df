"""Adds columns of side tables (a video's author, a user's age) to rows of logs, by key."""

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.ingest.logs.source import open_filesystem, reason
from infnet_dist.ingest_config import Join, LogsIngest


@dataclass(frozen=True)
class _SideTable:
    """Distinct keys, as integers or texts, and columns with one more row, null, at the end."""

    keys: pa.Array
    columns: pa.Table


def join_all(config: LogsIngest, raw: pa.Table) -> pa.Table:
    """The rows with the columns of all joins; null where a key is unknown.

    Raises:
        DataError: a side table can't be read, lacks a column, or has a key twice; or the keys of
            the logs are neither integers nor texts.
    """
    for join in config.joins.values():
        side = _read(join)
        keys = _as_keys(raw[join.key], f"column {join.key!r} of the logs")
        known = side.keys.cast(keys.type)
        places = pc.fill_null(pc.index_in(keys, value_set=known), len(known))
        for name in join.columns:
            raw = raw.append_column(name, side.columns[name].take(places))
    return raw


@lru_cache(maxsize=16)
def _read(join: Join) -> _SideTable:
    """A side table, kept for the next fragment of this process."""
    filesystem, path = open_filesystem(join.path)
    try:
        found = pq.read_schema(path, filesystem=filesystem).names
        for name in (join.key, *join.columns):
            if name not in found:
                raise DataError(f"{join.path}: {unknown_name('column', name, found)}")
        table = pq.read_table(path, columns=[join.key, *join.columns], filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{join.path} can't be read ({reason(error)}); check ingest.joins"
        ) from None
    keys = _as_keys(table[join.key], f"{join.path}: column {join.key!r}")
    if len(pc.unique(keys)) != len(keys) or keys.null_count:
        raise DataError(
            f"{join.path}: {join.key!r} must be there once for each key; remove doubles and nulls"
        )
    columns = table.select(list(join.columns))
    nulls = pa.table({f.name: pa.nulls(1, f.type) for f in columns.schema})
    return _SideTable(keys, pa.concat_tables([columns, nulls]).combine_chunks())


def _as_keys(column: pa.ChunkedArray, what: str) -> pa.Array:
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.cast(pa.large_string())
    raise DataError(f"{what} is {values.type}, expected integers or texts; convert it")
