"""Reads KuaiRand logs, as published (CSV) or as a Parquet slice, into one common form.

Other modules don't depend on the layout. Both have impressions, users and videos; the slice also
has past exposures of each user from before the window, which become rows too. Site-wide video
statistics are never read: they cover the whole month and leak the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from infnet_dist.contrib.kuairand.past import no_older_events, read_past
from infnet_dist.contrib.kuairand.raw_files import Columns, check_flags, check_unique, read_columns
from infnet_dist.errors import DataError
from infnet_dist.ingest.listing import list_place, log_left_out

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
USER_DENSE = ("register_days", "follow_user_num", "fans_user_num", "friend_user_num")
VIDEO_CATEGORIES = ("author_id", "tag", "music_id", "video_type", "upload_type", "music_type")

_TEXT = {"user_active_degree", "tag", "video_type", "upload_type"}
_MISSING = {  # values that mean unknown in the logs, besides null
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
    **{c: pa.string() if c in _TEXT else pa.float64() for c in (*USER_CATEGORIES, *USER_DENSE)},
}
_VIDEOS: Columns = {
    "video_id": pa.int64(),
    **{c: pa.string() if c in _TEXT else pa.float64() for c in VIDEO_CATEGORIES},
}
_SLICE = (
    "interactions_train.parquet",
    "interactions_valid.parquet",
    "users.parquet",
    "videos.parquet",
    "exposure_history.parquet",
)
TEST_FILE = "interactions_test.parquet"  # optional
_NOT_USED = "KuaiRand ingest doesn't use this file"


@dataclass(frozen=True)
class RawLogs:
    """KuaiRand logs in the common form; numbers are float64, unknown values null.

    Attributes:
        rows: impressions including past exposures, sorted by (time_ms, user_id, video_id):
            these ids, tab, duration_ms, play_time_ms and the LABELS as int8. Past exposures have
            only long_view and is_like.
        users: user_id, USER_CATEGORIES, USER_DENSE; one row per user.
        videos: video_id, VIDEO_CATEGORIES; one row per video.
        older: by behaviour (`long_view`, `like`), events before the past exposures of a user,
            sorted by time: user_id, video_id, time_ms.
        left_out: reasons by path of files in the folder that weren't read.
    """

    rows: pa.Table
    users: pa.Table
    videos: pa.Table
    older: dict[str, pa.Table]
    left_out: dict[str, str]

    @property
    def is_past(self) -> npt.NDArray[np.bool_]:
        """Mask of past exposures; their hour and scenario are unknown."""
        return self.rows["is_click"].is_null().to_numpy()


def read_kuairand(folder: Path) -> RawLogs:
    """Read the logs in `folder`, in either layout.

    Raises:
        DataError: the folder doesn't exist or has neither layout; or a file, column or value is
            missing or invalid.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; set ingest.path to the folder of the KuaiRand logs")
    if any((folder / name).is_file() for name in _SLICE):
        paths = [_existing(folder, name) for name in _SLICE]
        tests = [folder / TEST_FILE] if (folder / TEST_FILE).is_file() else []
        left_out = _left_out(folder, ".parquet", [*paths, *tests], whole=True)
        users, videos, history = paths[2:]
        return _common_form([*paths[:2], *tests], users, videos, history, left_out)
    for place in (folder, folder / "data"):
        logs = sorted(place.glob("log_standard_*.csv"))
        if logs:
            users = _only(place, "user_features_*.csv")
            videos = _only(place, "video_features_basic_*.csv")
            left_out = _left_out(place, ".csv", [*logs, users, videos])
            logs = [path for path in logs if str(path.absolute()) not in left_out]
            return _common_form(logs, users, videos, None, left_out)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise DataError(
        f"no KuaiRand logs in {folder}: found {found}; expected log_standard_*.csv (there or in "
        f"data/) or {_SLICE[0]}; set ingest.path to the folder that contains them"
    )


def _left_out(
    folder: Path, suffix: str, used: Sequence[Path], *, whole: bool = False
) -> dict[str, str]:
    """Reasons by path of files that aren't read: unused files, second names and copies.

    Raises:
        DataError: `whole` (all of `used` are required), and one of `used` is such a file.
    """
    listing = list_place(pa.fs.LocalFileSystem(), str(folder.absolute()), (suffix,))
    wanted = {str(path.absolute()) for path in used}
    for path in wanted & listing.left_out.keys() if whole else ():
        raise DataError(f"{path} is {listing.left_out[path]}; put the right file there")
    others = [file.path for file in listing.files if file.path not in wanted]
    left_out = dict.fromkeys(others, _NOT_USED) | listing.left_out
    log_left_out(left_out)
    return left_out


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


def _common_form(
    logs: Sequence[Path],
    users: Path,
    videos: Path,
    history: Path | None,
    left_out: dict[str, str],
) -> RawLogs:
    rows = pa.concat_tables([_read_rows(path) for path in logs])
    older = no_older_events()
    if history is not None:
        past, older = read_past(history)
        rows = pa.concat_tables([past, rows], promote_options="default").select(rows.column_names)
    keys = [rows[key].to_numpy() for key in ("video_id", "user_id", "time_ms")]
    rows = rows.take(pa.array(np.lexsort(keys))).combine_chunks()
    return RawLogs(
        rows=rows,
        users=check_unique(_read(users, _USERS), "user_id", users),
        videos=check_unique(_read(videos, _VIDEOS), "video_id", videos),
        older=older,
        left_out=left_out,
    )


def _read(path: Path, columns: Columns) -> pa.Table:
    """The columns, with null for the values that mean unknown."""
    table = read_columns(path, columns)
    for name in _MISSING.keys() & columns.keys():
        known = pc.not_equal(table[name], _MISSING[name])
        values = pc.if_else(known, table[name], pa.scalar(None, columns[name]))
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def _read_rows(path: Path) -> pa.Table:
    return check_flags(_read(path, _ROWS), LABELS, path)
