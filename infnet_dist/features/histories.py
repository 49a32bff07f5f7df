"""Histories of raw events: which events of a user a row may use, newest first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.features.definition import Behaviour, TimeColumn
from infnet_dist.features.lists import Lists, first_items
from infnet_dist.features.numbers import (
    EARLIEST_MS,
    LATEST_MS,
    gap_seconds,
    known_until,
    to_milliseconds,
)
from infnet_dist.features.raw_values import Column

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """The events of one behaviour that are in the histories of N rows.

    Attributes:
        columns: the raw columns of all events that were given, parallel lists.
        kept: bool [events], which of them are in a history.
        lengths: int64 [N], lengths of the histories.
        gap_s: int64 [items], seconds from each item to the row.
    """

    columns: dict[str, Column]
    kept: npt.NDArray[np.bool_]
    lengths: IntArray
    gap_s: IntArray

    def lists(self, values: npt.NDArray[Any]) -> Lists:
        """The histories with these values of all events."""
        return Lists(values[self.kept], self.lengths)


def row_times(column: Column, time: TimeColumn) -> IntArray:
    """Times in epoch milliseconds; of rows, or of events.

    Raises:
        DataError: a time is null, or not between 1990 and 2100; names the row.
    """
    times, null = column.integers()
    column.check_no_nulls(null)
    times_ms = to_milliseconds(times, time.unit)
    in_range = (times_ms >= EARLIEST_MS) & (times_ms < LATEST_MS)
    column.check(in_range, f"a time between 1990 and 2100 in {time.unit}")
    return times_ms


def make_history(
    name: str,
    behaviour: Behaviour,
    events: Any,
    names: set[str],
    rows_ms: IntArray,
    time: TimeColumn,
) -> History:
    """The histories of N rows from the events of their users.

    Args:
        name: name of the behaviour, for messages.
        behaviour: which events it has.
        events: by raw column of the events, a list per row, newest first. They may include the
            column `behaviour.where`; otherwise all are events of this behaviour.
        names: the raw columns that are needed.
        rows_ms: int64 [N], times of the rows.
        time: the column of times.

    Raises:
        DataError: a column is missing or unknown, lists aren't parallel, or events aren't in order.
    """
    columns = _columns(name, events, names | {time.raw}, {behaviour.where} - {None}, len(rows_ms))
    times = columns[time.raw]
    assert times.lengths is not None
    events_ms = row_times(times, time)
    row = np.repeat(np.arange(len(rows_ms)), times.lengths)
    ordered = (np.diff(row) != 0) | (np.diff(events_ms) <= 0)
    times.check(np.append(True, ordered)[: len(row)], "events in order, the newest first")
    cutoffs = known_until(rows_ms, daily=time.daily, offset_ms=time.offset_ms)
    kept = events_ms < cutoffs[row]
    if behaviour.where in columns:
        kept &= columns[behaviour.where].flags()
    known = np.bincount(row[kept], minlength=len(rows_ms))
    kept[kept] = first_items(known, behaviour.max_length)
    return History(
        columns=columns,
        kept=kept,
        lengths=np.bincount(row[kept], minlength=len(rows_ms)),
        gap_s=gap_seconds(rows_ms[row[kept]], events_ms[kept]),
    )


def _columns(
    name: str, events: Any, needed: set[str], optional: set[Any], num_rows: int
) -> dict[str, Column]:
    """The columns of the events, checked to be parallel lists."""
    if not isinstance(events, Mapping):
        raise DataError(
            f"behaviour {name!r}: got {type(events).__name__}, expected the lists of its events by "
            f"column: {', '.join(sorted(needed))}"
        )
    for other in sorted(events.keys() - needed - optional):
        raise DataError(f"behaviour {name!r}: {unknown_name('column', str(other), needed)}")
    for missing in sorted(needed - events.keys()):
        raise DataError(
            f"behaviour {name!r} lacks the column {missing!r} of its events; without events give "
            "empty lists"
        )
    columns: dict[str, Column] = {}
    for raw, rows in events.items():
        column = Column.of_rows(f"{name}.{raw}", rows)
        if len(column.values) != num_rows:
            raise DataError(
                f"column {column.name!r} has {len(column.values)} rows, expected {num_rows}"
            )
        columns[raw] = Column.of_lists(column.name, column.values)
        check_parallel(next(iter(columns.values())), columns[raw])
    return columns


def check_parallel(one: Column, other: Column) -> None:
    """Check that two columns of lists have lists of equal lengths.

    Raises:
        DataError: names the first row where they differ.
    """
    assert one.lengths is not None and other.lengths is not None
    differ = np.flatnonzero(one.lengths != other.lengths)
    if len(differ):
        row = int(differ[0])
        raise DataError(
            f"columns {one.name!r} and {other.name!r} have {one.lengths[row]} and "
            f"{other.lengths[row]} items in row {row} (from 0), expected as many"
        )
