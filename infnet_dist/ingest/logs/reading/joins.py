"""Adds columns of side tables (author of a video, age of a user) to rows of logs, by key."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from infnet_dist.config.log_columns import Join
from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.ingest.convert.arrays import UnfitColumnError, family, mask, plain
from infnet_dist.ingest.convert.ids import PLAIN_INTEGER, to_integers, to_join_keys, to_texts
from infnet_dist.ingest.convert.keys import keys
from infnet_dist.ingest.convert.kinds import accepts
from infnet_dist.ingest.logs.reading.csv_text import is_csv, read_texts
from infnet_dist.ingest.logs.reading.fragments import reason
from infnet_dist.io.filesystem import open_filesystem
from infnet_dist.io.urls import without_secrets

IntArray = npt.NDArray[np.int64]
IdType = Literal["int", "text"]


@dataclass(frozen=True)
class _SideTable:
    """Ascending `keys` of the rows, and columns with an additional row of nulls at the end.

    Attributes:
        text: whether keys are compared as texts instead of integers.
    """

    text: bool
    keys: IntArray
    columns: pa.Table

    def places(self, wanted: IntArray) -> IntArray:
        """Row numbers of these keys; unknown keys get the row of nulls."""
        if not len(self.keys):
            return np.zeros(len(wanted), np.int64)
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, place, len(self.keys))


def join_all(
    config: LogsIngest,
    raw: pa.Table,
    path: str = "the logs",
    unmatched: Counter[str] | None = None,
) -> pa.Table:
    """The rows with the columns of all joins; null if a key is null or unknown.

    Integers match their texts: 7 matches "7", not "007".

    Args:
        config: the joins, and `checks.KEY.type` of their keys.
        raw: rows as stored in the file.
        path: path of the file, for messages.
        unmatched: counter of rows without a match by join, which is updated.

    Raises:
        DataError: a side table can't be read, lacks a column, or has a key twice; or the key column
            has an unsuitable type.
    """
    for join_name, join in config.joins.items():
        declared = _declared(config, join)
        side = _read(join, declared)
        wanted = _as_keys(raw[join.key], declared, side.text, path, join.key)
        places = np.where(pc.is_null(wanted), len(side.keys), side.places(keys(wanted)))
        if unmatched is not None:
            unmatched[join_name] += int(np.count_nonzero(places == len(side.keys)))
        for name in join.columns:
            raw = raw.append_column(name, side.columns[name].take(pa.array(places)))
    return raw


def side_columns(config: LogsIngest) -> Iterator[tuple[str, pa.ChunkedArray, bool]]:
    """Name and stored values of the joined columns, and whether they come from CSV.

    Raises:
        DataError: as `join_all`.
    """
    for join in config.joins.values():
        table = _read(join, _declared(config, join)).columns
        for name in join.columns:
            yield name, table[name], is_csv(join.path)


def _declared(config: LogsIngest, join: Join) -> IdType | None:
    check = config.checks.get(join.key)
    return check.type if check is not None else None


@lru_cache(maxsize=16)
def _read(join: Join, declared: IdType | None) -> _SideTable:
    """A side table, cached for the next fragment of this process."""
    shown = without_secrets(join.path)
    table = _read_table(join, shown)
    column = table[join.key]
    text = _keys_are_texts(column, declared)
    named = _as_keys(column, declared, text, shown, join.key)
    wrong = mask(pc.is_null(named)) & mask(pc.is_valid(column.combine_chunks()))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{shown}: column {join.key!r} is {column[row]} in row {row} (from 0), expected an "
            "integer or text; repair or remove the row"
        )
    order = np.argsort(keys(named), kind="stable")
    ascending = keys(named)[order]
    (twice,) = np.nonzero(np.diff(ascending) == 0)
    if named.null_count or len(twice):
        what = "null" if named.null_count else f"{column[order[twice[0]]].as_py()!r} twice"
        raise DataError(
            f"{shown}: key column {join.key!r} contains {what}, expected each key once; remove "
            "duplicates and nulls"
        )
    columns = table.select(list(join.columns)).take(pa.array(order))
    nulls = pa.table({f.name: pa.nulls(1, f.type) for f in columns.schema})
    together = pa.concat_tables([columns, nulls]).combine_chunks()
    return _SideTable(text, ascending, together)


def _read_table(join: Join, shown: str) -> pa.Table:
    """The key and the columns as stored; all columns of CSV are texts, as in the logs."""
    wanted = [join.key, *join.columns]
    filesystem, path = open_filesystem(join.path)
    try:
        if is_csv(path):
            found = pa.schema([(name, pa.large_binary()) for name in wanted])
            batches = read_texts(filesystem, path, wanted, join.csv, shown)
            return pa.Table.from_batches(batches, found)
        with filesystem.open_input_file(path) as file:
            check_columns(pq.read_schema(file).names, wanted, shown)
        with filesystem.open_input_file(path) as file:
            return pq.read_table(file, columns=wanted)
    except (OSError, pa.ArrowException) as error:
        why = reason(error)
        raise DataError(f"{shown} can't be read ({why}); check ingest.joins") from None


def _keys_are_texts(column: pa.ChunkedArray, declared: IdType | None) -> bool:
    """Whether keys must be compared as texts because some aren't integers."""
    if declared is not None or family(column.type) != "text":
        return declared == "text"
    written = pc.match_substring_regex(to_texts(plain(column))[0], PLAIN_INTEGER)
    return not pc.all(written, min_count=0).as_py()


def _as_keys(
    column: pa.ChunkedArray, declared: IdType | None, text: bool, path: str, name: str
) -> pa.Array:
    """Keys as int64 or large_string; null for nulls and for keys that can't be in the table."""
    try:
        if not accepts("text", column.type):
            raise UnfitColumnError(f"is {column.type}, expected integers or texts")
        if family(column.type) == "null":
            return pa.nulls(len(column), pa.large_string() if text else pa.int64())
        values = plain(column)
        if declared is not None:
            return (to_texts if text else to_integers)(values)[0]
        return to_join_keys(values, text)
    except UnfitColumnError as error:
        raise DataError(f"{error.at(name, path)}; convert it") from None
