"""Reads KuaiRand logs, published (CSV) or our Parquet slice, into one common form.

Nothing after this module knows which layout it was. Both have impressions, users and videos; the
slice also has each user's exposures from before the window. Site-wide video statistics are never
read: they cover the whole month and so leak the future.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.errors import DataError
from infnet_dist.ingest.raw_files import Columns, check_flags, check_unique, read_columns

LABELS = (
    "is_click",
    "long_view",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "is_profile_enter",
)
USER_CATEGORIES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{i}" for i in range(18)),
)
USER_NUMBERS = ("register_days", "follow_user_num", "fans_user_num", "friend_user_num")
VIDEO_CATEGORIES = ("author_id", "tag", "music_id", "video_type", "upload_type", "music_type")

BEIJING_MS = 8 * 3_600_000  # UTC + 8 h
DAY_MS = 86_400_000

_TEXT = {"user_active_degree", "tag", "video_type", "upload_type"}
_MISSING = {  # how the logs write "unknown", beside null
    "is_live_streamer": -124.0,
    "user_active_degree": "UNKNOWN",
    "music_id": 0.0,
    "video_type": "UNKNOWN",
    "upload_type": "UNKNOWN",
    "duration_ms": 0.0,
}
_ROWS: Columns = {
    **dict.fromkeys(("user_id", "video_id", "time_ms"), pa.int64()),
    **dict.fromkeys(("tab", "duration_ms", "play_time_ms", *LABELS), pa.float64()),
}
_USERS: Columns = {
    "user_id": pa.int64(),
    **{c: pa.string() if c in _TEXT else pa.float64() for c in (*USER_CATEGORIES, *USER_NUMBERS)},
}
_VIDEOS: Columns = {
    "video_id": pa.int64(),
    **{c: pa.string() if c in _TEXT else pa.float64() for c in VIDEO_CATEGORIES},
}
_HISTORY_LISTS = ("exposed_video_id", "long_view", "is_like", "long_view_video_id", "like_video_id")
_HISTORY: Columns = {
    **dict.fromkeys(("user_id", "last_time_ms"), pa.int64()),
    **dict.fromkeys(_HISTORY_LISTS, pa.list_(pa.int64())),
}
_SLICE = (
    "interactions_train.parquet",
    "interactions_valid.parquet",
    "users.parquet",
    "videos.parquet",
    "exposure_history.parquet",
)


@dataclass(frozen=True)
class RawLogs:
    """KuaiRand logs in the common form; numbers are float64, unknown values null.

    Attributes:
        rows: impressions sorted by (time_ms, user_id, video_id): these ids, tab, duration_ms,
            play_time_ms and the LABELS as int8.
        users: user_id, USER_CATEGORIES, USER_NUMBERS; one row per user.
        videos: video_id, VIDEO_CATEGORIES; one row per video.
        past: events from before the rows, without labels of their own to train on, by behaviour
            (`exposed`, `long_view`, `like`), sorted by time: user_id, video_id, time_ms;
            `exposed` also has long_view and is_like. Their single times aren't known: `time_ms` is
            the user's last one, the earliest moment at which all of them have surely happened.
    """

    rows: pa.Table
    users: pa.Table
    videos: pa.Table
    past: dict[str, pa.Table]


def read_kuairand(folder: Path) -> RawLogs:
    """Read the logs in `folder`, whichever layout they have.

    Raises:
        DataError: no such folder, neither layout, or a file, column or value is missing or wrong.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; set ingest.path to the folder of the KuaiRand logs")
    if any((folder / name).is_file() for name in _SLICE):
        paths = [_existing(folder, name) for name in _SLICE]
        return _common_form(paths[:2], paths[2], paths[3], _read_history(paths[4]))
    for place in (folder, folder / "data"):
        logs = sorted(place.glob("log_standard_*.csv"))
        if logs:
            users = _only(place, "user_features_*.csv")
            videos = _only(place, "video_features_basic_*.csv")
            return _common_form(logs, users, videos, _no_history())
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise DataError(
        f"no KuaiRand logs in {folder}: found {found}; expected log_standard_*.csv (there or in "
        f"data/) or {_SLICE[0]}; set ingest.path to the folder that holds them"
    )


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise DataError(
            f"{folder} has no {name}; the Parquet layout needs {', '.join(_SLICE)}: add the file"
        )
    return folder / name


def _only(folder: Path, pattern: str) -> Path:
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise DataError(
            f"{folder} has {len(paths)} files {pattern} ({names}), expected one beside the "
            "log_standard_*.csv: keep one KuaiRand version per folder"
        )
    return paths[0]


def _common_form(logs: list[Path], users: Path, videos: Path, past: dict[str, pa.Table]) -> RawLogs:
    rows = pa.concat_tables([_read_rows(path) for path in logs])
    keys = [rows[key].to_numpy() for key in ("video_id", "user_id", "time_ms")]
    rows = rows.take(pa.array(np.lexsort(keys))).combine_chunks()
    return RawLogs(
        rows=rows,
        users=check_unique(_read(users, _USERS), "user_id", users),
        videos=check_unique(_read(videos, _VIDEOS), "video_id", videos),
        past=past,
    )


def _read(path: Path, columns: Columns) -> pa.Table:
    """The columns, with the logs' ways to write "unknown" turned into null."""
    table = read_columns(path, columns)
    for name in _MISSING.keys() & columns.keys():
        known = pc.not_equal(table[name], _MISSING[name])
        values = pc.if_else(known, table[name], pa.scalar(None, columns[name]))
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def _read_rows(path: Path) -> pa.Table:
    return check_flags(_read(path, _ROWS), LABELS, path)


def _read_history(path: Path) -> dict[str, pa.Table]:
    """The exposure history as flat events, each user's oldest first."""
    table = read_columns(path, _HISTORY)
    lengths = pc.fill_null(pc.list_value_length(table["exposed_video_id"]), 0)
    for name in ("long_view", "is_like"):
        same = pc.equal(pc.fill_null(pc.list_value_length(table[name]), 0), lengths)
        if not pc.all(same, min_count=0).as_py():
            row = pc.index(same, False).as_py()
            raise DataError(
                f"{path}: row {row} has a list {name} of another length than exposed_video_id; "
                "repair or remove the row"
            )
    exposed = _flatten(path, table, "exposed_video_id", ("long_view", "is_like"))
    return {
        "exposed": check_flags(exposed, ("long_view", "is_like"), path),
        "long_view": _flatten(path, table, "long_view_video_id"),
        "like": _flatten(path, table, "like_video_id"),
    }


def _flatten(path: Path, table: pa.Table, items: str, flags: tuple[str, ...] = ()) -> pa.Table:
    owner = pc.list_parent_indices(table[items].combine_chunks())
    if pc.list_flatten(table[items]).null_count:
        raise DataError(f"{path}: a list {items} has an empty item, expected a video_id; repair it")
    events = {
        "user_id": table["user_id"].take(owner),
        "video_id": pc.list_flatten(table[items]),
        "time_ms": table["last_time_ms"].take(owner),
        **{flag: pc.list_flatten(table[flag]) for flag in flags},
    }
    flat = pa.table(events)
    # Stable, so that a user's events stay oldest first although they share a timestamp.
    order = np.argsort(flat["time_ms"].to_numpy(), kind="stable")
    return flat.take(pa.array(order)).combine_chunks()


def _no_history() -> dict[str, pa.Table]:
    nothing = pa.array([], pa.int64())
    flags = {"long_view": pa.array([], pa.int8()), "is_like": pa.array([], pa.int8())}
    events = {"user_id": nothing, "video_id": nothing, "time_ms": nothing}
    return {
        "exposed": pa.table(events | flags),
        "long_view": pa.table(events),
        "like": pa.table(events),
    }
