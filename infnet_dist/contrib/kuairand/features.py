"""KuaiRand logs in the common form -> columns of features, their tables and their definitions.

Everything is fitted on the training window, the rows before `valid_from`: vocabularies and priors
on all of them, boundaries on those that aren't past exposures, which are more similar to valid.
Counters aren't fitted: they count events up to the cutoff of each row in all splits, including
users, videos and authors that don't occur in train.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.contrib.kuairand.logs import (
    USER_CATEGORIES,
    USER_DENSE,
    VIDEO_CATEGORIES,
    RawLogs,
)
from infnet_dist.contrib.kuairand.time import hour, weekday
from infnet_dist.ingest.counters import EventCounts, pair_keys, smoothed_rate
from infnet_dist.ingest.encode import Vocabulary, float_column, quantile_boundaries
from infnet_dist.schema import CategoricalFeature, DenseFeature, Table

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

NUM_BUCKETS = 32
PRIOR_STRENGTH = 10.0  # pseudo-trials of the mean rate in a smoothed rate
ITEM_ATTRIBUTES = ("video", "author", "tag")
_SIGNALS = {"click": "is_click", "long_view": "long_view", "like": "is_like"}


class Entities:
    """All users, or all videos, with the attributes in their file.

    Args:
        key: `user_id` or `video_id`.
        described: the users or videos file.
        occurring: ids that occur in rows and older events.
        seen: ids that occur in the training window; vocabularies contain only their values.
    """

    def __init__(
        self, key: str, described: pa.Table, occurring: list[IntArray], seen: list[IntArray]
    ) -> None:
        """Join the attributes to every id; null for ids that the file lacks."""
        self._ids = np.unique(np.concatenate([*occurring, described[key].to_numpy()]))
        ids = pa.array(self._ids)
        position = pc.index_in(ids, value_set=described[key])
        columns = [n for n in described.column_names if n != key]
        self._attributes = described.select(columns).take(position).append_column(key, ids)
        self._seen = np.searchsorted(self._ids, np.unique(np.concatenate(seen)))

    def __len__(self) -> int:
        """Number of entities."""
        return len(self._ids)

    def index(self, ids: IntArray) -> IntArray:
        """Position of each id, in [0, len(self))."""
        return np.searchsorted(self._ids, ids)

    def encode(self, column: str) -> tuple[IntArray, int]:
        """Ids of the values in `column` of every entity, and the number of rows of their table."""
        values = self._attributes[column].combine_chunks()
        vocabulary = Vocabulary.fit(values.take(pa.array(self._seen)))
        return vocabulary.encode(values), vocabulary.num_embeddings

    def groups(self, column: str) -> IntArray:
        """Numbers from 1 on for the values in `column` of every entity, 0 for null."""
        values = self._attributes[column].combine_chunks()
        return Vocabulary.fit(values).encode(values)

    def floats(self, column: str) -> FloatArray:
        """Values in `column` of every entity, NaN for null."""
        return pc.fill_null(self._attributes[column], np.nan).to_numpy()


@dataclass
class Features:
    """The columns of all rows, their features and their tables.

    Attributes:
        columns: feature column -> int64 array or float32 Arrow array, one value per row.
        users: all users; `users.index` gives the consecutive user numbers of histories.
        video_codes: int64 [videos, ITEM_ATTRIBUTES], ids of every video.
        videos: all videos, aligned with `video_codes`.
    """

    users: Entities
    videos: Entities
    video_codes: IntArray
    columns: dict[str, IntArray | pa.Array] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    categorical: list[CategoricalFeature] = field(default_factory=list)
    dense: list[DenseFeature] = field(default_factory=list)

    def add_categorical(self, name: str, ids: IntArray, num_embeddings: int) -> None:
        """Add a categorical feature with its own table."""
        self.columns[name] = ids
        self.tables.append(Table(name=name, num_embeddings=num_embeddings))
        self.categorical.append(CategoricalFeature(name=name, table=name, column=name))

    def add_bucketised(self, name: str, values: FloatArray, fit: BoolArray) -> None:
        """Add a dense feature, bucketised by quantiles of the rows in `fit`; NaN is missing."""
        boundaries = quantile_boundaries(values[fit], NUM_BUCKETS)
        self.columns[name] = float_column(values)
        self.tables.append(Table(name=name, num_embeddings=len(boundaries) + 2))
        self.dense.append(DenseFeature(name=name, column=name, boundaries=boundaries))

    def add_standardised(self, name: str, values: FloatArray, fit: BoolArray) -> None:
        """Add a standardised dense feature; NaN is replaced by the mean of the rows in `fit`."""
        known = values[fit & ~np.isnan(values)]
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
        self.columns[name] = float_column(np.where(np.isnan(values), mean, values))
        self.dense.append(DenseFeature(name=name, column=name, mean=mean, std=std or 1.0))


def build_features(logs: RawLogs, valid_from_ms: int, known_until_ms: IntArray) -> Features:
    """All features except histories, for every row of `logs.rows`.

    Args:
        logs: the raw logs, rows in time order.
        valid_from_ms: vocabularies, boundaries and priors are fitted on earlier rows.
        known_until_ms: int64 [rows], cutoffs; the counters of a row count earlier events.
    """
    rows = logs.rows
    time_ms = rows["time_ms"].to_numpy()
    fit = (time_ms < valid_from_ms) & ~logs.is_past
    users = _entities(logs, "user_id", logs.users, valid_from_ms)
    videos = _entities(logs, "video_id", logs.videos, valid_from_ms)
    user = users.index(rows["user_id"].to_numpy())
    video = videos.index(rows["video_id"].to_numpy())

    video_tables = {"video": videos.encode("video_id")}
    for column in VIDEO_CATEGORIES:
        video_tables[column.removesuffix("_id")] = videos.encode(column)
    user_tables = {"user": users.encode("user_id")} | {c: users.encode(c) for c in USER_CATEGORIES}
    item_codes = np.stack([video_tables[name][0] for name in ITEM_ATTRIBUTES], axis=1)
    features = Features(users=users, videos=videos, video_codes=item_codes)

    for index, tables in ((user, user_tables), (video, video_tables)):
        for name, (codes, num_embeddings) in tables.items():
            features.add_categorical(name, codes[index], num_embeddings)
    context = {
        "tab": rows["tab"].combine_chunks(),
        "hour": pa.array(hour(time_ms), mask=logs.is_past),
        "weekday": pa.array(weekday(time_ms), mask=logs.is_past),
    }
    for name, values in context.items():
        vocabulary = Vocabulary.fit(values.filter(pa.array(fit)))
        features.add_categorical(name, vocabulary.encode(values), vocabulary.num_embeddings)

    duration_ms = pc.fill_null(rows["duration_ms"], np.nan).to_numpy()
    features.add_bucketised("duration_ms", duration_ms, fit)
    features.add_standardised("log_duration_s", np.log1p(duration_ms / 1000), fit)
    for column in USER_DENSE:
        features.add_bucketised(column, users.floats(column)[user], fit)
    for name, values in _counters(logs, features, valid_from_ms, known_until_ms).items():
        features.add_bucketised(name, values, fit)
    return features


def _entities(logs: RawLogs, key: str, described: pa.Table, valid_from_ms: int) -> Entities:
    sources = [logs.rows, *logs.older.values()]
    occurring = [table[key].to_numpy() for table in sources]
    seen = [table[key].to_numpy()[_in_window(table, valid_from_ms)] for table in sources]
    return Entities(key, described, occurring, seen)


def _in_window(table: pa.Table, valid_from_ms: int) -> BoolArray:
    return table["time_ms"].to_numpy() < valid_from_ms


def _counters(
    logs: RawLogs, features: Features, valid_from_ms: int, known_until_ms: IntArray
) -> dict[str, FloatArray]:
    """Earlier impressions and smoothed rates, per user, video, author and (user, author)."""
    weights, times = _weights(logs.rows), _surely_happened_ms(logs)
    names = list(_SIGNALS)
    known, happened = weights[:, 1 : 1 + len(names)], weights[:, 1 + len(names) :]
    learned = _in_window(logs.rows, valid_from_ms)
    prior = happened[learned].sum(axis=0) / np.maximum(known[learned].sum(axis=0), 1.0)

    counters: dict[str, FloatArray] = {}
    for key, keys in _counter_keys(logs.rows, features).items():
        sums = EventCounts(keys, times, weights).before(keys, known_until_ms)
        counters[f"{key}_impressions"] = sums[:, 0]
        for i, name in enumerate(names):
            counters[f"{key}_{name}_rate"] = smoothed_rate(
                sums[:, 1 + len(names) + i],
                sums[:, 1 + i],
                prior=float(prior[i]),
                strength=PRIOR_STRENGTH,
            )
    return counters


def _surely_happened_ms(logs: RawLogs) -> IntArray:
    """Upper bounds of the times of rows; for past exposures, the last one of the user."""
    time_ms: IntArray = logs.rows["time_ms"].to_numpy()
    past, users = logs.is_past, logs.rows["user_id"].to_numpy()
    known, number = np.unique(users, return_inverse=True)
    last_ms = np.zeros(len(known), np.int64)
    np.maximum.at(last_ms, number[past], time_ms[past])
    return np.where(past, last_ms[number], time_ms)


def _weights(events: pa.Table) -> FloatArray:
    """Contributions of E events, [E, 1 + 2 x signals]: 1, whether signals are known, and true."""
    columns = [events[column] for column in _SIGNALS.values()]
    known = [column.is_valid().to_numpy() for column in columns]
    happened = [pc.fill_null(column, 0).to_numpy() for column in columns]
    return np.stack([np.ones(len(events)), *known, *happened], axis=1)


def _counter_keys(rows: pa.Table, features: Features) -> Mapping[str, IntArray]:
    """Keys of the counters by name; 0 is unknown."""
    videos = features.videos.index(rows["video_id"].to_numpy())
    authors = features.videos.groups("author_id")
    user, author = 1 + features.users.index(rows["user_id"].to_numpy()), authors[videos]
    return {
        "user": user,
        "video": 1 + videos,
        "author": author,
        "user_author": pair_keys(user, author, int(authors.max(initial=0)) + 1),
    }
