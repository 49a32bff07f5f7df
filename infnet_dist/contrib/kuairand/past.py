"""Exposures of KuaiRand users before the window, from the exposure history of the slice.

The file has the last 50 exposures of each user, oldest first, with long_view and is_like, the time
of the last one, and their number since the log began. Individual times are unknown and assumed to
be evenly spread: the order within a user is exact, time gaps are approximate. An event may get an
earlier time than it had, so counters over users take the last time of the user for all of them.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.contrib.kuairand.raw_files import Columns, check_flags, check_unique, read_columns
from infnet_dist.contrib.kuairand.time import midnight_ms
from infnet_dist.errors import DataError

IntArray = npt.NDArray[np.int64]

_FLAGS = ("long_view", "is_like")
_OLDER = {"long_view": "long_view_video_id", "like": "like_video_id"}
_FLAG_OF = {"long_view": "long_view", "like": "is_like"}
_LISTS = ("exposed_video_id", *_FLAGS, *_OLDER.values())
_HISTORY: Columns = {
    **dict.fromkeys(("user_id", "history_len", "last_time_ms"), pa.int64()),
    **dict.fromkeys(_LISTS, pa.list_(pa.int64())),
}


def read_past(path: Path) -> tuple[pa.Table, dict[str, pa.Table]]:
    """The past exposures, and older events by behaviour.

    Returns:
        exposures (user_id, video_id, time_ms, long_view and is_like as int8), and by behaviour
        (`long_view`, `like`) the events before the exposures of a user (user_id, video_id,
        time_ms), since their lists are longer. Both are sorted by time.

    Raises:
        DataError: the file is malformed.
    """
    table = check_unique(read_columns(path, _HISTORY), "user_id", path)
    lengths = _lengths(table, "exposed_video_id")
    for name in _FLAGS:
        wrong = np.flatnonzero(_lengths(table, name) != lengths)
        if len(wrong):
            raise DataError(
                f"{path}: row {wrong[0]} has a list {name} of another length than "
                "exposed_video_id; repair or remove the row"
            )
    last_ms = table["last_time_ms"].to_numpy()
    step_ms = _mean_gap_ms(last_ms, np.maximum(table["history_len"].to_numpy(), lengths))
    owner, place, exposed = _flat(path, table, "exposed_video_id")
    exposures = pa.table(
        {
            "user_id": table["user_id"].take(pa.array(owner)),
            "video_id": exposed,
            "time_ms": last_ms[owner] - (lengths[owner] - 1 - place) * step_ms[owner],
            **{flag: pc.list_flatten(table[flag]) for flag in _FLAGS},
        }
    )
    exposures = check_flags(exposures, _FLAGS, path)
    first_ms = last_ms - np.maximum(lengths - 1, 0) * step_ms
    older = {}
    for behaviour, column in _OLDER.items():
        positive = exposures[_FLAG_OF[behaviour]].to_numpy() == 1
        among_exposures = np.bincount(owner[positive], minlength=len(table))
        older[behaviour] = _older_events(path, table, column, among_exposures, first_ms)
    return _by_time(exposures), older


def no_older_events() -> dict[str, pa.Table]:
    """The older events if there is no exposure history."""
    nothing = pa.array([], pa.int64())
    events = pa.table({"user_id": nothing, "video_id": nothing, "time_ms": nothing})
    return dict.fromkeys(_OLDER, events)


def _mean_gap_ms(last_ms: IntArray, counts: IntArray) -> IntArray:
    """Mean milliseconds between the exposures of a user since the first day of the log."""
    if len(last_ms) == 0:
        return last_ms
    start_ms = midnight_ms(last_ms.min())
    return np.maximum((last_ms - start_ms) // np.maximum(counts, 1), 1)


def _older_events(
    path: Path, table: pa.Table, column: str, among_exposures: IntArray, first_ms: IntArray
) -> pa.Table:
    """The items of a list without the newest ones, which are among the exposures."""
    owner, place, items = _flat(path, table, column)
    older = place < (_lengths(table, column) - among_exposures)[owner]
    owner = owner[older]
    return _by_time(
        pa.table(
            {
                "user_id": table["user_id"].take(pa.array(owner)),
                "video_id": items.filter(pa.array(older)),
                "time_ms": first_ms[owner] - 1,
            }
        )
    )


def _flat(path: Path, table: pa.Table, column: str) -> tuple[IntArray, IntArray, pa.Array]:
    """Row, position in the list, and value of all items in a column of lists."""
    lists = table[column].combine_chunks()
    items = pc.list_flatten(lists)
    if items.null_count:
        raise DataError(
            f"{path}: a list {column} has an empty item, expected a video_id; repair it"
        )
    owner = pc.list_parent_indices(lists).to_numpy()
    lengths = _lengths(table, column)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, place, items


def _lengths(table: pa.Table, column: str) -> IntArray:
    lengths: IntArray = pc.fill_null(pc.list_value_length(table[column]), 0).to_numpy()
    return lengths.astype(np.int64)


def _by_time(events: pa.Table) -> pa.Table:
    """Sort by time, stably: the events of a user stay oldest first."""
    order = np.argsort(events["time_ms"].to_numpy(), kind="stable")
    return events.take(pa.array(order)).combine_chunks()
