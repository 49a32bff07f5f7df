"""Raw rows -> columns of the training set, from raw columns or given as they are there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError
from infnet_dist.features.definition import (
    Definition,
    GapsColumn,
    HistoryActions,
    HistoryGaps,
    HistoryIds,
    IdColumn,
    IdsColumn,
    IdTable,
    NumberColumn,
    SetColumn,
    VectorColumn,
    WeightsColumn,
)
from infnet_dist.features.histories import History, check_parallel, make_history, row_times
from infnet_dist.features.ids import IdEncoder
from infnet_dist.features.lists import Lists, action_codes
from infnet_dist.features.numbers import fits_float32
from infnet_dist.features.raw_values import Column

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
# An array with a value per row, or lists.
Values = Array | Lists


class RawRows:
    """N raw rows; what several columns need is made once.

    Args:
        definition: what is made of what.
        encoders: by table.
        needed: the columns of the training set that are asked for.
        columns: raw columns and the events of behaviours, as of `Transforms.encode`.
        prepared: columns of the training set.

    Raises:
        DataError: nothing is given, or columns differ in length.
    """

    def __init__(
        self,
        definition: Definition,
        encoders: Mapping[str, IdEncoder],
        needed: Mapping[str, SetColumn],
        columns: Mapping[str, Any],
        prepared: Mapping[str, Any],
    ) -> None:
        self._definition, self._encoders, self._needed = definition, encoders, needed
        self._behaviours = {n: v for n, v in columns.items() if n in self._definition.behaviours}
        self._raw = {
            name: Column.of_rows(name, rows)
            for name, rows in columns.items()
            if name not in self._behaviours
        }
        self._prepared = {name: Column.of_rows(name, rows) for name, rows in prepared.items()}
        given = [*self._raw.values(), *self._prepared.values()]
        if not given:
            raise DataError("no column is given; give at least one with a value per row")
        self.num_rows = len(given[0].values)
        for column in given:
            if len(column.values) != self.num_rows:
                raise DataError(
                    f"column {column.name!r} has {len(column.values)} rows, but "
                    f"{given[0].name!r} has {self.num_rows}; expected as many"
                )
        self._keys: dict[str, tuple[IntArray, Array]] = {}
        self._lists: dict[str, Column] = {}
        self._histories: dict[str, History] = {}

    def made(self, name: str, column: SetColumn) -> Values:
        """A column of the training set from raw columns."""
        match column:
            case IdColumn():
                return self._ids(self._column(column.raw), column)
            case IdsColumn():
                items = self._list(column.raw)
                assert items.lengths is not None
                ids = self._ids(items, column, nulls=False)
                return Lists(ids, items.lengths).first(column.max_length)
            case WeightsColumn():
                items = self._list(column.raw)
                check_parallel(self._list(column.of), items)
                return _weights(items).first(column.max_length)
            case GapsColumn():
                return _gaps(self._list(column.raw)).first(column.max_length)
            case VectorColumn():
                return _vectors(self._column(column.raw), column.dim)
            case NumberColumn():
                return _numbers(self._column(column.raw), column)
            case HistoryIds():
                history = self._history(column.behaviour)
                ids = self._ids(history.columns[column.raw], column)
                return history.lists(ids)
            case HistoryActions():
                history = self._history(column.behaviour)
                flags = [history.columns[raw].flags() for raw in column.raw]
                return history.lists(action_codes(flags, len(history.kept)).astype(np.int64))
            case HistoryGaps():
                history = self._history(column.behaviour)
                return Lists(history.gap_s, history.lengths)

    def given(self, name: str, column: SetColumn) -> Values:
        """A column of the training set that is given as it is there."""
        found = self._prepared[name]
        match column:
            case IdColumn():
                return self._given_ids(found, self._definition.tables[column.table])
            case IdsColumn() | HistoryIds():
                items = Column.of_lists(name, found.values)
                assert items.lengths is not None
                ids = self._given_ids(items, self._definition.tables[column.table])
                return Lists(ids, items.lengths)
            case HistoryActions():
                items = Column.of_lists(name, found.values)
                assert items.lengths is not None
                num_ids = 1 + 2 ** len(column.raw)
                return Lists(self._given_ids(items, IdTable("ids", num_ids)), items.lengths)
            case GapsColumn() | HistoryGaps():
                return _gaps(Column.of_lists(name, found.values))
            case WeightsColumn():
                return _weights(Column.of_lists(name, found.values))
            case VectorColumn():
                return _vectors(found, column.dim)
            case NumberColumn():
                if column.null != "keep":
                    column = replace(column, null="error")
                return _numbers(found, replace(column, not_finite="error"))

    def _column(self, raw: str) -> Column:
        if raw not in self._raw:
            kind = self._definition.raw[raw]
            raise DataError(f"the raw column {raw!r} ({kind}) is missing; null is allowed, as None")
        return self._raw[raw]

    def _list(self, raw: str) -> Column:
        if raw not in self._lists:
            self._lists[raw] = Column.of_lists(raw, self._column(raw).values)
        return self._lists[raw]

    def _ids(
        self, column: Column, of: IdColumn | IdsColumn | HistoryIds, nulls: bool = True
    ) -> IntArray:
        """Ids of the raw values of a column, or of the items of its lists."""
        if column.name not in self._keys:
            kind = self._definition.raw[of.raw].removesuffix("s")
            self._keys[column.name] = column.keys(kind)
        keys, null = self._keys[column.name]
        if not nulls:
            column.check_no_nulls(null)
        table = self._definition.tables[of.table]
        if table.encoding == "ids":
            column.check(null | _in_range(keys, table), _expected_ids(table))
        return self._encoders[of.table](keys, null, of.seed)

    def _given_ids(self, column: Column, table: IdTable) -> IntArray:
        ids, null = column.integers()
        column.check_no_nulls(null)
        if table.encoding != "raw":
            column.check(_in_range(ids, table), _expected_ids(table))
        return ids

    def _history(self, name: str) -> History:
        if name in self._histories:
            return self._histories[name]
        needed = [
            column
            for column in self._needed.values()
            if isinstance(column, HistoryIds | HistoryActions | HistoryGaps)
            and column.behaviour == name
        ]
        if name not in self._behaviours:
            raise DataError(
                f"histories of behaviour {name!r} are missing; give its events as {name!r}, or all "
                "its prepared columns; without events give empty lists"
            )
        raw = {r for c in needed if isinstance(c, HistoryIds) for r in (c.raw,)}
        raw |= {r for c in needed if isinstance(c, HistoryActions) for r in c.raw}
        time = self._definition.time
        assert time is not None
        self._histories[name] = make_history(
            name,
            self._definition.behaviours[name],
            self._behaviours[name],
            raw,
            row_times(self._column(time.raw), time),
            time,
        )
        return self._histories[name]


def _in_range(ids: IntArray, table: IdTable) -> npt.NDArray[np.bool_]:
    return (ids >= 0) & (ids < table.num_ids)


def _expected_ids(table: IdTable) -> str:
    return f"an id from 0 (unknown) to {table.num_ids - 1}, as in the training set"


def _numbers(column: Column, of: NumberColumn) -> npt.NDArray[np.float32]:
    floats = column.floats()
    fits = fits_float32(floats)
    if of.not_finite == "null":
        floats = np.where(fits, floats, np.nan)
    else:
        column.check(fits, "a finite number of float32")
    if of.null == "error":
        column.check_no_nulls(np.isnan(floats))
    elif of.null == "fill":
        floats = np.where(np.isnan(floats), of.fill, floats)
    return floats.astype(np.float32)


def _weights(items: Column) -> Lists:
    floats = items.floats()
    assert items.lengths is not None
    items.check((floats >= 0) & fits_float32(floats), "a finite number of float32, not below 0")
    return Lists(floats.astype(np.float32), items.lengths)


def _gaps(items: Column) -> Lists:
    seconds, null = items.integers()
    assert items.lengths is not None
    items.check(~null & (seconds >= 0), "seconds, not below 0")
    return Lists(seconds, items.lengths)


def _vectors(column: Column, dim: int) -> Lists:
    """The numbers of vectors; none where they are null."""
    items = Column.of_lists(column.name, column.values)
    assert items.lengths is not None
    null = np.fromiter((row is None for row in column.values), bool, len(column.values))
    column.check(null | (items.lengths == dim), f"{dim} numbers, or null")
    floats = items.floats()
    items.check(~np.isnan(floats) & fits_float32(floats), "a finite number of float32")
    return Lists(floats.astype(np.float32), items.lengths)
