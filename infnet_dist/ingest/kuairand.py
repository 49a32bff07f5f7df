"""KuaiRand logs -> a training set: features, histories, labels; split by time, in chunks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.config import KuaiRandIngest
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest.histories import HistoryBuilder
from infnet_dist.ingest.kuairand_features import ITEM_ATTRIBUTES, Features, build_features
from infnet_dist.ingest.kuairand_logs import BEIJING_MS, DAY_MS, LABELS, RawLogs, read_kuairand
from infnet_dist.ingest.writer import TrainingSetWriter
from infnet_dist.schema import Schema, SequenceAttribute, SequenceFeature, Table, Task

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ROWS_PER_CHUNK = 65_536
# What an exposed item met with: 1 to 8 from the logs (click, long_view, like), 9 to 12 from the
# exposure history, which doesn't tell clicks (long_view, like). 0 stays free for "unknown".
NUM_ACTIONS = 13
_PAST_ACTION = 9


def make_training_set(
    config: KuaiRandIngest, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Turn the raw logs at `config.path` into a training set at `folder`.

    Args:
        config: which logs, where to split, how to write.
        folder: the training set to make; must not hold anything yet.
        progress: called with (rows written, rows in all) after each chunk.

    Raises:
        ConfigError: a split day is no date, or they are in the wrong order.
        DataError: the logs are missing or malformed, or a split has no rows.
    """
    starts_ms = _split_starts(config)
    with TrainingSetWriter(
        folder,
        rows_per_part=config.rows_per_part,
        row_group_rows=config.row_group_rows,
        source=config.model_dump(mode="json"),
    ) as writer:
        logs = read_kuairand(config.path)
        time_ms = logs.rows["time_ms"].to_numpy()
        splits = _split_rows(time_ms, starts_ms, config.path)
        features = build_features(logs, starts_ms["valid"], known_until(time_ms, config.refresh))
        behaviours = _behaviours(logs, features, config)
        labels = _task_labels(logs, splits["train"].stop, config.min_base_rate)
        tasks = [Task(name=name, column=f"label_{name}") for name in labels]
        if config.watch_time:
            tasks.append(_watch_time(labels, logs, splits["train"].stop))
        columns = _plain_columns(logs, features, labels)
        done = 0
        for split, chunk in _chunks(splits):
            pieces = columns.slice(chunk.start, chunk.stop - chunk.start)
            for behaviour in behaviours:
                for name, values in behaviour.histories(chunk).items():
                    pieces = pieces.append_column(name, values)
            writer.write(split, pieces)
            done += len(pieces)
            if progress is not None:
                progress(done, len(time_ms))
        return writer.publish(_schema(features, behaviours, tasks))


def _split_starts(config: KuaiRandIngest) -> dict[str, int]:
    """First millisecond of valid and, if there is one, of test."""
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


def _split_rows(time_ms: IntArray, starts_ms: dict[str, int], path: Path) -> dict[str, range]:
    """The rows of each split; rows are in time order, so each is one interval."""
    edges = [0, *(int(np.searchsorted(time_ms, start)) for start in starts_ms.values())]
    edges.append(len(time_ms))
    names = ["train", *starts_ms]
    splits = {name: range(edges[i], edges[i + 1]) for i, name in enumerate(names)}
    for name, rows in splits.items():
        if not rows:
            ends = time_ms[[0, -1]] if len(time_ms) else ()
            days = " to ".join(_beijing_day(t) for t in ends) or "none"
            raise DataError(
                f"split {name} has no rows: the logs in {path} cover {days}, Beijing time; "
                "change ingest.valid_from or ingest.test_from"
            )
    return splits


def _beijing_day(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(int(time_ms) / 1000, UTC) + timedelta(hours=8):%Y-%m-%d}"


def _chunks(splits: dict[str, range]) -> Iterator[tuple[str, range]]:
    for split, rows in splits.items():
        for start in range(rows.start, rows.stop, ROWS_PER_CHUNK):
            yield split, range(start, min(start + ROWS_PER_CHUNK, rows.stop))


def known_until(time_ms: IntArray, refresh: Literal["daily", "live"]) -> IntArray:
    """What a row may know is strictly before: its own time, or the last midnight in Beijing.

    A day's own feedback is left out by default, because it spoils what is measured within a user:
    whoever just liked a video has a higher rate of likes and a newer like in all rows *after* it,
    and each user with both classes has such rows. On the slice the age of the last like alone has
    a gAUC of .11 when live.
    """
    if refresh == "live":
        return time_ms
    return (time_ms + BEIJING_MS) // DAY_MS * DAY_MS - BEIJING_MS


def _task_labels(logs: RawLogs, num_train: int, min_base_rate: float) -> dict[str, pa.Array]:
    """Task name -> labels, for the signals that are frequent enough in train."""
    labels = {}
    for column in LABELS:
        values = logs.rows[column].combine_chunks()
        if values.to_numpy()[:num_train].mean() >= min_base_rate:
            labels[column.removeprefix("is_")] = values
    if not labels:
        raise DataError(
            f"no signal has a base rate of {min_base_rate:g} or more in train; "
            "lower ingest.min_base_rate"
        )
    return labels


def _watch_time(labels: dict[str, pa.Array], logs: RawLogs, num_train: int) -> Task:
    """The task, with its label column added to `labels`; an unknown watch time counts as 0 ms."""
    play_time_ms = pc.fill_null(logs.rows["play_time_ms"].combine_chunks(), 0.0)
    if pc.min(play_time_ms).as_py() < 0:
        row = pc.index(pc.less(play_time_ms, 0.0), True).as_py()
        raise DataError(
            f"play_time_ms is {play_time_ms[row].as_py():g} in impression {row} (by time), "
            "expected 0 or more; repair the logs, or set ingest.watch_time=false"
        )
    labels["watch_time"] = pc.round(play_time_ms).cast(pa.int64())
    mean_ms = float(labels["watch_time"].to_numpy()[:num_train].mean())
    if mean_ms == 0:
        raise DataError("no watch time in train; set ingest.watch_time=false")
    return Task(
        name="watch_time", column="label_watch_time", kind="watch_time", mean_ms=round(mean_ms, 3)
    )


def _plain_columns(logs: RawLogs, features: Features, labels: dict[str, pa.Array]) -> pa.Table:
    """All columns but the histories. user_id and video_id stay raw, to group and to trace rows."""
    raw = {name: logs.rows[name] for name in ("user_id", "video_id", "time_ms")}
    labels = {f"label_{name}": values for name, values in labels.items()}
    return pa.table({**raw, **features.columns, **labels})


class _Behaviour:
    """One behaviour's histories, read chunk by chunk while its events are added."""

    def __init__(
        self, name: str, rows: "_Items", past: "_Items", *, num_users: int, config: KuaiRandIngest
    ) -> None:
        self.name = name
        self.refresh = config.refresh
        self.attributes = (*ITEM_ATTRIBUTES, "action")[: rows.codes.shape[1]]
        self.length = config.history_length
        self._rows = rows
        self._past = past
        self._past_read = 0
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
        """Columns of these rows; chunks must follow one another."""
        last = self._rows.time_ms[chunk.stop - 1]
        stop = int(np.searchsorted(self._past.time_ms, last, side="right"))
        past = self._past.part(range(self._past_read, stop))
        self._past_read = stop
        rows = self._rows.part(chunk)
        # Past events are mostly, not always, before the first row: merge them by time.
        time_ms = np.concatenate([past.time_ms, rows.time_ms])
        order = np.argsort(time_ms, kind="stable")
        found = self._builder.read_then_add(
            np.concatenate([past.user, rows.user])[order],
            time_ms[order],
            np.concatenate([past.codes, rows.codes])[order],
            np.concatenate([past.happened, rows.happened])[order],
            known_until(time_ms[order], self.refresh),
        )
        wanted = pa.array(np.flatnonzero(order >= len(past.user)))
        columns = {f"{self.name}_{a}": found.column(i) for i, a in enumerate(self.attributes)}
        columns[f"{self.name}_gap_s"] = found.gap_column()
        return {name: values.take(wanted) for name, values in columns.items()}


@dataclass(frozen=True)
class _Items:
    """Items that users met, in time order, and whether each is an event of the behaviour."""

    user: IntArray
    time_ms: IntArray
    codes: IntArray
    happened: BoolArray

    def part(self, rows: range) -> "_Items":
        cut = slice(rows.start, rows.stop)
        return _Items(self.user[cut], self.time_ms[cut], self.codes[cut], self.happened[cut])


def _behaviours(logs: RawLogs, features: Features, config: KuaiRandIngest) -> list[_Behaviour]:
    """Everything shown (with what it met with), long views, likes."""
    signals = {"exposed": None, "long_view": "long_view", "like": "is_like"}
    behaviours = []
    for name, signal in signals.items():
        rows, past = (_items(t, features) for t in (logs.rows, logs.past[name]))
        if signal is None:
            rows = _with_action(rows, logs.rows, ("is_click", "long_view", "is_like"), 1)
            past = _with_action(past, logs.past[name], ("long_view", "is_like"), _PAST_ACTION)
        else:
            rows = replace(rows, happened=logs.rows[signal].to_numpy() == 1)
        size = len(features.users)
        behaviours.append(_Behaviour(name, rows, past, num_users=size, config=config))
    return behaviours


def _items(table: pa.Table, features: Features) -> _Items:
    return _Items(
        user=features.users.index(table["user_id"].to_numpy()),
        time_ms=table["time_ms"].to_numpy(),
        codes=features.video_codes[features.videos.index(table["video_id"].to_numpy())],
        happened=np.ones(table.num_rows, bool),
    )


def _with_action(items: _Items, table: pa.Table, flags: tuple[str, ...], first: int) -> _Items:
    action = np.full(table.num_rows, first, np.int64)
    for bit, flag in enumerate(flags):
        action += table[flag].to_numpy().astype(np.int64) << bit
    return replace(items, codes=np.concatenate([items.codes, action[:, None]], axis=1))


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
