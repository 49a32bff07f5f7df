"""Adds columns of side tables (a video's author, a user's age) to rows of logs, by key."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from infnet_dist.errors import DataError
from infnet_dist.filesystem import open_filesystem
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.ingest.logs.hashing import keys
from infnet_dist.ingest.logs.source import reason
from infnet_dist.logs_config import Join, LogsIngest
from infnet_dist.urls import without_secrets

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _SideTable:
    """Ascending `keys` of the rows, and columns with one more row, null, at the end."""

    text: bool
    keys: IntArray
    columns: pa.Table

    def places(self, wanted: IntArray) -> IntArray:
        """Rows of these keys; that of nulls where unknown."""
        if not len(self.keys):
            return np.zeros(len(wanted), np.int64)
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, place, len(self.keys))


def join_all(config: LogsIngest, raw: pa.Table, unmatched: Counter[str] | None = None) -> pa.Table:
    """The rows with the columns of all joins; null where a key is null or unknown.

    Args:
        config: names the joins.
        raw: rows of the logs.
        unmatched: gets, by join, the number of rows without a match added.

    Raises:
        DataError: a side table can't be read, lacks a column, or has a key twice; or the keys of
            the logs are neither integers nor texts, or not what the side table's are.
    """
    for join_name, join in config.joins.items():
        side = _read(join)
        what = f"column {join.key!r} of the logs"
        wanted = _as_keys(raw[join.key], what)
        if _is_text(wanted) != side.text:
            if not side.text and config.format == "csv":
                wanted = _numbers(wanted)
            else:
                raise DataError(
                    f"{what} is {wanted.type}, in {without_secrets(join.path)} keys are "
                    f"{'texts' if side.text else 'integers'}; convert one of them"
                )
        places = np.where(pc.is_null(wanted), len(side.keys), side.places(keys(wanted)))
        if unmatched is not None:
            unmatched[join_name] += int(np.count_nonzero(places == len(side.keys)))
        for name in join.columns:
            raw = raw.append_column(name, side.columns[name].take(pa.array(places)))
    return raw


@lru_cache(maxsize=16)
def _read(join: Join) -> _SideTable:
    """A side table, kept for the next fragment of this process."""
    wanted = [join.key, *join.columns]
    filesystem, path = open_filesystem(join.path)
    shown = without_secrets(join.path)
    try:
        with filesystem.open_input_file(path) as file:
            found = pa.csv.open_csv(file).schema if _is_csv(join) else pq.read_schema(file)
        check_columns(found.names, wanted, shown)
        with filesystem.open_input_file(path) as file:
            if _is_csv(join):
                options = pa.csv.ConvertOptions(include_columns=wanted, strings_can_be_null=True)
                table = pa.csv.read_csv(file, convert_options=options)
            else:
                table = pq.read_table(file, columns=wanted)
    except (OSError, pa.ArrowException) as error:
        why = reason(error)
        raise DataError(f"{shown} can't be read ({why}); check ingest.joins") from None
    named = _as_keys(table[join.key], f"{shown}: column {join.key!r}")
    order = np.argsort(keys(named), kind="stable")
    ascending = keys(named)[order]
    if named.null_count or np.any(np.diff(ascending) == 0):
        raise DataError(
            f"{shown}: {join.key!r} must be there once for each key; remove doubles and nulls"
        )
    columns = table.select(list(join.columns)).take(pa.array(order))
    nulls = pa.table({f.name: pa.nulls(1, f.type) for f in columns.schema})
    together = pa.concat_tables([columns, nulls]).combine_chunks()
    return _SideTable(_is_text(named), ascending, together)


def _is_csv(join: Join) -> bool:
    return join.path.endswith(".csv")


def _as_keys(column: pa.ChunkedArray, what: str) -> pa.Array:
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.cast(pa.large_string())
    raise DataError(f"{what} is {values.type}, expected integers or texts; convert it")


def _is_text(values: pa.Array) -> bool:
    return bool(pa.types.is_large_string(values.type))


def _numbers(texts: pa.Array) -> pa.Array:
    """CSV's texts as integers, null where they aren't: `clean` tells of those."""
    fits = pc.fill_null(pc.match_substring_regex(texts, r"^[+-]?\d{1,18}$"), False)
    return pc.if_else(fits, texts, pa.scalar(None, texts.type)).cast(pa.int64())
