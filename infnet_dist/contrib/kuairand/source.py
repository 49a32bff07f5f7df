"""KuaiRand logs -> a training set: features, histories and labels, split by time, in chunks."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.config.ingest import KuaiRandIngest
from infnet_dist.contrib.kuairand.features import ITEM_ATTRIBUTES, Features, build_features
from infnet_dist.contrib.kuairand.logs import LABELS, TEST_FILE, RawLogs, read_kuairand
from infnet_dist.contrib.kuairand.time import midnight_ms
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest.coverage import warn_of_unknown
from infnet_dist.ingest.histories import HistoryBuilder
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.schema import Schema, SequenceAttribute, SequenceFeature, Table, Task

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

log = logging.getLogger(__name__)
ROWS_PER_CHUNK = 65_536
# Actions on an exposed item: 1 to 8 from the logs (click, long_view, like), 9 to 12 from the
# exposure history, which has no clicks (long_view, like). 0 is reserved for unknown.
NUM_ACTIONS = 13
_PAST_ACTION = 9
_WATCH_TIME = "label_watch_time"
_SIGNALS = {"long_view": "long_view", "like": "is_like"}  # of all behaviours except `exposed`


def make_training_set(
    config: KuaiRandIngest, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Make a training set at `folder` from the raw logs at `config.path`.

    Args:
        config: logs, split days, format of the parts.
        folder: the training set to make; missing or empty.
        progress: called with (rows done, rows in total) after each chunk.

    Raises:
        ConfigError: a split day is invalid, or the days are in the wrong order.
        DataError: the logs are missing or malformed, or a split has no rows.
    """
    starts_ms = _split_starts(config)
    with TrainingSetWriter(
        folder,
        rows_per_part=config.rows_per_part,
        row_group_rows=config.row_group_rows,
        source=config.model_dump(mode="json"),
        nullable=[_WATCH_TIME],
    ) as writer:
        _check_test_file(config)
        logs = read_kuairand(config.path)
        time_ms = logs.rows["time_ms"].to_numpy()
        is_past = logs.is_past
        _check_past(is_past, time_ms, starts_ms["valid"], config)
        splits = _split_rows(time_ms, is_past, starts_ms, config.path)
        fit = ~is_past & (time_ms < starts_ms["valid"])
        features = build_features(logs, starts_ms["valid"], known_until(time_ms, config.refresh))
        behaviours = _behaviours(logs, features, config)
        written = ~is_past | _newest_past(logs, config.past_exposures)
        labels = _task_labels(logs, fit, config.min_base_rate)
        tasks = [_binary_task(name, values, written) for name, values in labels.items()]
        if config.watch_time:
            tasks.append(_watch_time(labels, logs, fit, written))
        columns = _scalar_columns(logs, features, labels)
        done = 0
        for split, chunk in _chunks(splits):
            pieces = columns.slice(chunk.start, len(chunk))
            for behaviour in behaviours:
                for name, values in behaviour.histories(chunk).items():
                    pieces = pieces.append_column(name, values)
            writer.write(split, pieces.filter(pa.array(written[chunk.start : chunk.stop])))
            done += len(chunk)
            if progress is not None:
                progress(done, len(time_ms))
        manifest = writer.publish(_schema(features, behaviours, tasks), logs.left_out)
    warn_of_unknown(manifest)
    return manifest


def _check_test_file(config: KuaiRandIngest) -> None:
    """Raise ConfigError if rows of the test file would become rows of valid."""
    if config.test_from is None and (config.path / TEST_FILE).is_file():
        raise ConfigError(
            f"ingest.test_from: null, but {config.path} has {TEST_FILE}; set the first day of "
            "test, or move the file elsewhere"
        )


def _split_starts(config: KuaiRandIngest) -> dict[str, int]:
    """First epoch millisecond of valid and, if there is one, of test."""
    starts = {"valid": _beijing_midnight_ms("valid_from", config.valid_from)}
    if config.test_from is not None:
        starts["test"] = _beijing_midnight_ms("test_from", config.test_from)
        if starts["test"] <= starts["valid"]:
            raise ConfigError(
                f"ingest.test_from: got {config.test_from}, expected a day after valid_from "
                f"({config.valid_from})"
            )
    return starts


def _beijing_midnight_ms(key: str, day: str) -> int:
    try:
        midnight = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) - timedelta(hours=8)
    except ValueError:
        raise ConfigError(f"ingest.{key}: got {day!r}, expected a day such as 2022-05-04") from None
    return int(midnight.timestamp()) * 1000


def _split_rows(
    time_ms: IntArray, is_past: BoolArray, starts_ms: dict[str, int], path: Path
) -> dict[str, range]:
    """The range of rows of each split; rows are in time order."""
    edges = [0, *(int(np.searchsorted(time_ms, start)) for start in starts_ms.values())]
    edges.append(len(time_ms))
    names = ["train", *starts_ms]
    splits = {name: range(edges[i], edges[i + 1]) for i, name in enumerate(names)}
    for name, rows in splits.items():
        if is_past[rows.start : rows.stop].all():
            logged_ms = time_ms[~is_past]
            ends = logged_ms[[0, -1]] if len(logged_ms) else ()
            days = " to ".join(_beijing_day(t) for t in ends) or "none"
            raise DataError(
                f"split {name} has no rows: the logs in {path} cover {days}, Beijing time; "
                "change ingest.valid_from or ingest.test_from"
            )
    return splits


def _check_past(
    is_past: BoolArray, time_ms: IntArray, valid_from_ms: int, config: KuaiRandIngest
) -> None:
    """Check that past exposures exist if they are requested, and precede valid."""
    if config.past_exposures and not is_past.any():
        raise ConfigError(
            f"ingest.past_exposures: got {config.past_exposures}, but the logs in {config.path} "
            "have no exposure history; set 0"
        )
    if (time_ms[is_past] >= valid_from_ms).any():
        raise DataError(
            f"exposure_history.parquet in {config.path} contains exposures after ingest.valid_from "
            f"({config.valid_from}), which can't be trained on; remove them, or choose a later day"
        )


def _newest_past(logs: RawLogs, count: int) -> BoolArray:
    """Mask of the rows that are among the `count` newest past exposures of their user."""
    past = np.flatnonzero(logs.is_past)
    users = logs.rows["user_id"].to_numpy()[past]
    by_user = np.argsort(users, kind="stable")  # and by time
    users = users[by_user]
    later = np.searchsorted(users, users, side="right") - np.arange(len(users)) - 1
    newest = np.zeros(len(logs.rows), bool)
    newest[past[by_user[later < count]]] = True
    return newest


def _beijing_day(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(int(time_ms) / 1000, UTC) + timedelta(hours=8):%Y-%m-%d}"


def _chunks(splits: dict[str, range]) -> Iterator[tuple[str, range]]:
    for split, rows in splits.items():
        for start in range(rows.start, rows.stop, ROWS_PER_CHUNK):
            yield split, range(start, min(start + ROWS_PER_CHUNK, rows.stop))


def known_until(time_ms: IntArray, refresh: Literal["daily", "live"]) -> IntArray:
    """Cutoffs of rows, which see only earlier events: their own time, or midnight in Beijing.

    By default feedback of the same day is excluded, because it distorts metrics within a user:
    after a like, the rate of likes is higher and the last like is newer in all *later* rows of the
    user, and each user with both classes has such rows. On the slice, the age of the last like
    alone has a gAUC of 0.11 with live refresh.
    """
    if refresh == "live":
        return time_ms
    return midnight_ms(time_ms)


def _task_labels(logs: RawLogs, fit: BoolArray, min_base_rate: float) -> dict[str, pa.Array]:
    """Labels by task, for the signals that are frequent enough in the rows of `fit`."""
    labels, rare = {}, []
    for column in LABELS:
        values = logs.rows[column].combine_chunks()
        rate = pc.mean(values.filter(pa.array(fit))).as_py()
        if rate >= min_base_rate:
            labels[column.removeprefix("is_")] = values
        else:
            rare.append(f"{column} ({rate:.4f})")
    if rare:
        log.info("rarer than ingest.min_base_rate, not a task: %s", ", ".join(rare))
    if not labels:
        raise DataError(
            f"no signal has a base rate of {min_base_rate:g} or more in train; "
            "lower ingest.min_base_rate"
        )
    return labels


def _binary_task(name: str, labels: pa.Array, written: BoolArray) -> Task:
    nullable = labels.filter(pa.array(written)).null_count > 0
    return Task(name=name, column=f"label_{name}", nullable=nullable)


def _watch_time(
    labels: dict[str, pa.Array], logs: RawLogs, fit: BoolArray, written: BoolArray
) -> Task:
    """The watch-time task; adds its label column to `labels`.

    An unknown watch time counts as 0 ms, except for past exposures, where it stays unknown.
    """
    play_time_ms = pc.fill_null(logs.rows["play_time_ms"].combine_chunks(), 0.0)
    play_time_ms = pc.if_else(pa.array(logs.is_past), None, play_time_ms)
    if pc.min(play_time_ms).as_py() < 0:
        row = pc.index(pc.less(play_time_ms, 0.0), True).as_py()
        keys = ", ".join(f"{k} {logs.rows[k][row]}" for k in ("user_id", "video_id", "time_ms"))
        raise DataError(
            f"play_time_ms is {play_time_ms[row].as_py():g} in the impression of {keys}, expected "
            "0 or more; repair the logs, or set ingest.watch_time=false"
        )
    labels["watch_time"] = pc.round(play_time_ms).cast(pa.int64())
    mean_ms = pc.mean(labels["watch_time"].filter(pa.array(fit))).as_py()
    if mean_ms == 0:
        raise DataError("watch times in train are all 0; set ingest.watch_time=false")
    return Task(
        name="watch_time",
        column=_WATCH_TIME,
        kind="watch_time",
        mean_ms=round(mean_ms, 3),
        nullable=bool((logs.is_past & written).any()),
    )


def _scalar_columns(logs: RawLogs, features: Features, labels: dict[str, pa.Array]) -> pa.Table:
    """All columns except histories. user_id and video_id stay raw, to group and trace rows."""
    raw = {name: logs.rows[name] for name in ("user_id", "video_id", "time_ms")}
    labels = {f"label_{name}": values for name, values in labels.items()}
    return pa.table({**raw, **features.columns, **labels})


class _Behaviour:
    """Histories of one behaviour, read in chunks while its events are added."""

    def __init__(
        self, name: str, rows: "_Items", older: "_Items", *, num_users: int, config: KuaiRandIngest
    ) -> None:
        self.name = name
        self.refresh = config.refresh
        self.attributes = (*ITEM_ATTRIBUTES, "action")[: rows.codes.shape[1]]
        self.length = config.history_length
        self._rows = rows
        self._older = older
        self._older_read = 0
        self._builder = HistoryBuilder(
            num_users=num_users, length=self.length, num_attributes=len(self.attributes)
        )

    @property
    def feature(self) -> SequenceFeature:
        return SequenceFeature(
            name=self.name,
            attributes=tuple(
                SequenceAttribute(name=a, table=a, column=f"{self.name}_{a}")
                for a in self.attributes
            ),
            max_length=self.length,
            time_gap_column=f"{self.name}_gap_s",
        )

    def histories(self, chunk: range) -> dict[str, pa.Array]:
        """Columns of these rows; chunks must be consecutive."""
        last = self._rows.time_ms[chunk.stop - 1]
        stop = int(np.searchsorted(self._older.time_ms, last, side="right"))
        older = self._older.part(range(self._older_read, stop))
        self._older_read = stop
        rows = self._rows.part(chunk)
        time_ms = np.concatenate([older.time_ms, rows.time_ms])
        order = np.argsort(time_ms, kind="stable")
        found = self._builder.read_then_add(
            np.concatenate([older.user, rows.user])[order],
            time_ms[order],
            np.concatenate([older.codes, rows.codes])[order],
            np.concatenate([older.happened, rows.happened])[order],
            known_until(time_ms[order], self.refresh),
        )
        wanted = pa.array(np.flatnonzero(order >= len(older.user)))
        columns = {f"{self.name}_{a}": found.column(i) for i, a in enumerate(self.attributes)}
        columns[f"{self.name}_gap_s"] = found.gap_column()
        return {name: values.take(wanted) for name, values in columns.items()}


@dataclass(frozen=True)
class _Items:
    """Items exposed to users, in time order, and whether each is an event of the behaviour."""

    user: IntArray
    time_ms: IntArray
    codes: IntArray
    happened: BoolArray

    def part(self, rows: range) -> "_Items":
        cut = slice(rows.start, rows.stop)
        return _Items(self.user[cut], self.time_ms[cut], self.codes[cut], self.happened[cut])


def _behaviours(logs: RawLogs, features: Features, config: KuaiRandIngest) -> list[_Behaviour]:
    """All exposures (with actions), long views, likes."""
    rows = _items(logs.rows, features)
    codes = np.concatenate([rows.codes, _actions(logs)[:, None]], axis=1)
    size = len(features.users)
    exposed = replace(rows, codes=codes)
    behaviours = [
        _Behaviour("exposed", exposed, exposed.part(range(0)), num_users=size, config=config)
    ]
    for name, older in logs.older.items():
        happened = replace(rows, happened=logs.rows[_SIGNALS[name]].to_numpy() == 1)
        older_items = _items(older, features)
        behaviours.append(_Behaviour(name, happened, older_items, num_users=size, config=config))
    return behaviours


def _items(table: pa.Table, features: Features) -> _Items:
    return _Items(
        user=features.users.index(table["user_id"].to_numpy()),
        time_ms=table["time_ms"].to_numpy(),
        codes=features.video_codes[features.videos.index(table["video_id"].to_numpy())],
        happened=np.ones(table.num_rows, bool),
    )


def _actions(logs: RawLogs) -> IntArray:
    click, long_view, like = (
        pc.fill_null(logs.rows[flag], 0).to_numpy().astype(np.int64)
        for flag in ("is_click", "long_view", "is_like")
    )
    logged = 1 + click + 2 * long_view + 4 * like
    return np.where(logs.is_past, _PAST_ACTION + long_view + 2 * like, logged)


def _schema(features: Features, behaviours: list[_Behaviour], tasks: Sequence[Task]) -> Schema:
    return Schema(
        tables=(*features.tables, Table(name="action", num_embeddings=NUM_ACTIONS)),
        categorical=tuple(features.categorical),
        sequences=tuple(behaviour.feature for behaviour in behaviours),
        dense=tuple(features.dense),
        tasks=tuple(tasks),
        group_column="user_id",
        time_column="time_ms",
    )
