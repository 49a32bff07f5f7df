"""A synthetic world of users, items and authors with known probabilities.

P(label = 1) of a row is the sigmoid of a sum that differs by task:

    match       the topic of the item is a *current* favourite of the user; favourites drift, so
                only recent history shows them. The largest term; a sum of id effects can't express
                it
    item        author, topic, duration and a hidden quality of the item
    user        age group and a hidden tendency
    taste       age group x topic
    context     tab; days since the upload of the item
    signals     tags, interests, content, city x device, if there are any (`signals.py`)
    drift       daily changes of items and tastes, if there are any (`changes.py`)

Bait topics and long durations increase `click` and decrease `long_view`: the tasks are correlated
but conflict. With `ingest.own_favourites` the tasks share nothing of the largest term: each task
has separate favourites, which only the history of its own behaviour shows.

A share of the feed is personal, drawn from a current favourite topic: clicks concentrate on the
favourites, and the last few clicks reveal them.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.schema import BagFeature, CategoricalFeature, Table, VectorFeature

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

TASKS = ("click", "like", "long_view")
NUM_AGE_GROUPS = 6
NUM_TABS = 4
START_MS = 1_704_067_200_000  # 2024-01-01, UTC
DAY_MS = 86_400_000

# Logit weights by task, in the order of TASKS; the other effects are drawn in population.py.
MATCH = np.array([2.3, 2.4, 2.3])
PER_DAY = np.array([-0.012, -0.008, 0.006])

PERSONAL_SHARE = 0.45  # of the feed

# First elements of the seeds, so that all streams of random numbers differ.
WORLD_STREAM, ROWS_STREAM, LABEL_STREAM, PILOT_STREAM, SIGNALS_STREAM, CHANGES_STREAM = range(6)


@dataclass(frozen=True)
class Impressions:
    """Users, items, tabs and times of rows; int64 [n] each, ids from 1, times increasing.

    `numbers` are the positions of the rows in the log.
    """

    users: IntArray
    items: IntArray
    tabs: IntArray
    times_ms: IntArray
    numbers: IntArray


class Features(NamedTuple):
    """What a signal adds to the schema."""

    tables: tuple[Table, ...] = ()
    categorical: tuple[CategoricalFeature, ...] = ()
    bags: tuple[BagFeature, ...] = ()
    vectors: tuple[VectorFeature, ...] = ()


class Signal(Protocol):
    """Optional columns, and their effect on the labels."""

    def logits(self, rows: Impressions) -> FloatArray:
        """Log odds that the columns add, float64 [n, tasks]."""
        ...

    def columns(self, rows: Impressions) -> dict[str, pa.Array]:
        """The columns of the rows, by name."""
        ...

    def features(self) -> Features:
        """The features that read the columns."""
        ...


class Catalogue(Protocol):
    """Items that don't all exist from the start."""

    def shares_of(self, day: int) -> tuple[FloatArray, FloatArray]:
        """`item_cdf` and `topic_cdf` (see `World`) on a day from 0."""
        ...


@dataclass(frozen=True)
class World:
    """Users, items and authors; row 0 of every array is the unknown id and is never drawn.

    Attributes:
        seed: seed of the world and of its logs.
        num_topics: topics are 1 to num_topics.
        step_ms: row i happens within [i, i + 1) x step_ms after START_MS.
        user_cdf: cumulated share of the impressions, float64 [users + 1].
        item_order: the items by topic, int64 [items + 1].
        item_cdf: cumulated share of the impressions in that order, float64 [items + 1].
        topic_cdf: share of all items of lower topics, float64 [topics + 2].
        item_author: int64 [items + 1].
        item_topic: int64 [items + 1].
        item_duration_s: float32 [items + 1].
        item_upload_ms: int64 [items + 1], before the first row of the item.
        user_age_group: int64 [users + 1].
        favourite_ms: duration of a favourite of the user, float64 [users + 1].
        favourite_phase: phase of its changes in [0, 1), float64 [users + 1, favourites].
        favourites_of: mask of the favourites of each task, bool [favourites, tasks].
        item_effect: float64 [items + 1, tasks], like all effects below.
        user_effect: by user.
        tab_effect: by tab.
        taste_effect: by age group and topic.
        signals: optional columns.
        intercept: makes the mean probabilities equal to BASE_RATES, float64 [tasks].
        births: which items exist on a day; None: all, always.
    """

    seed: int
    num_topics: int
    step_ms: int
    user_cdf: FloatArray
    item_order: IntArray
    item_cdf: FloatArray
    topic_cdf: FloatArray
    item_author: IntArray
    item_topic: IntArray
    item_duration_s: npt.NDArray[np.float32]
    item_upload_ms: IntArray
    user_age_group: IntArray
    favourite_ms: FloatArray
    favourite_phase: FloatArray
    favourites_of: npt.NDArray[np.bool_]
    item_effect: FloatArray
    user_effect: FloatArray
    tab_effect: FloatArray
    taste_effect: FloatArray
    signals: tuple[Signal, ...]
    intercept: FloatArray
    births: Catalogue | None = None

    def impressions(self, first_row: int, num_rows: int) -> Impressions:
        """Rows `first_row` to `first_row + num_rows` of the log; deterministic.

        Row i is in the i-th time step, so chunks are in order independently of each other.
        """
        rng = np.random.default_rng([ROWS_STREAM, self.seed, first_row])
        rows = np.arange(first_row, first_row + num_rows)
        return self.draw(rng, rows)

    def labels(self, first_row: int, truth: FloatArray) -> npt.NDArray[np.bool_]:
        """Draw each label independently with its probability; bool [n, tasks]."""
        rng = np.random.default_rng([LABEL_STREAM, self.seed, first_row])
        return rng.random(truth.shape) < truth

    def truth(self, rows: Impressions) -> FloatArray:
        """P(label = 1) of each row and task, float64 [n, tasks]."""
        return sigmoid(self.logits(rows))

    def logits(self, rows: Impressions) -> FloatArray:
        """Log odds of `truth`; the docstring of the module lists the terms."""
        topics = self.item_topic[rows.items]
        match = self.is_favourite(rows.users, topics, rows.times_ms)
        logits = (
            self.intercept
            + match * MATCH
            + self.item_effect[rows.items]
            + self.user_effect[rows.users]
            + self.taste_effect[self.user_age_group[rows.users], topics]
            + self.tab_effect[rows.tabs]
            + self.item_age_days(rows)[:, None] * PER_DAY
        )
        for signal in self.signals:
            logits = logits + signal.logits(rows)
        return logits

    def item_age_days(self, rows: Impressions) -> FloatArray:
        """Days from the upload of the item to the row."""
        return (rows.times_ms - self.item_upload_ms[rows.items]) / DAY_MS

    def is_favourite(self, users: IntArray, topics: IntArray, times_ms: IntArray) -> npt.NDArray:
        """Whether the topic is a favourite of the user at that time, bool [n, tasks]."""
        return (self.favourites(users, times_ms) == topics[:, None]) @ self.favourites_of

    def favourites(self, users: IntArray, times_ms: IntArray) -> IntArray:
        """Favourite topics of the users at that time, int64 [n, favourites]; some may be equal.

        Each favourite is a hash of user and period, so no state is kept.
        """
        periods = (times_ms - START_MS) / self.favourite_ms[users]
        period = np.floor(periods[:, None] + self.favourite_phase[users]).astype(np.uint64)
        slot = np.arange(self.favourite_phase.shape[1], dtype=np.uint64)
        key = mix(np.full(1, self.seed, np.uint64))
        key = mix(key + users.astype(np.uint64))[:, None]
        key = mix(mix(key + slot) + period)
        return (key % np.uint64(self.num_topics)).astype(np.int64) + 1

    def draw(self, rng: np.random.Generator, rows: IntArray) -> Impressions:
        """Impressions at the positions `rows` of the log, ascending."""
        times_ms = START_MS + rows * self.step_ms + rng.integers(0, self.step_ms, len(rows))
        users = np.searchsorted(self.user_cdf, rng.random(len(rows)), side="right")
        favourites = self.favourites(users, times_ms)
        chosen = rng.integers(0, favourites.shape[1], len(rows))
        topic = favourites[np.arange(len(rows)), chosen]
        whole, place = rng.random(len(rows)) >= PERSONAL_SHARE, rng.random(len(rows))
        items = self._items(topic, whole, place, times_ms)
        tabs = rng.integers(1, NUM_TABS + 1, len(rows))
        return Impressions(users, items, tabs, times_ms, rows)

    def _items(
        self, topic: IntArray, whole: npt.NDArray, place: FloatArray, times_ms: IntArray
    ) -> IntArray:
        """Items by their share of the impressions, of the topic or of the whole catalogue.

        Args:
            topic: topic of each row.
            whole: mask of the rows whose items are of any topic.
            place: random numbers in [0, 1).
            times_ms: times of the rows.
        """
        if self.births is None:
            return self._items_of(self.item_cdf, self.topic_cdf, topic, whole, place)
        items = np.zeros(len(topic), np.int64)
        days = (times_ms - START_MS) // DAY_MS
        for day in np.unique(days):
            on = days == day
            shares = self.births.shares_of(int(day))
            items[on] = self._items_of(*shares, topic[on], whole[on], place[on])
        return items

    def _items_of(
        self,
        item_cdf: FloatArray,
        topic_cdf: FloatArray,
        topic: IntArray,
        whole: npt.NDArray,
        place: FloatArray,
    ) -> IntArray:
        low, high = topic_cdf[topic], topic_cdf[topic + 1]
        # Rows of a topic without items are drawn from the whole catalogue.
        whole = whole | (high <= low)
        low, high = np.where(whole, 0.0, low), np.where(whole, 1.0, high)
        ranks = np.searchsorted(item_cdf, low + (high - low) * place, side="right")
        last = np.searchsorted(item_cdf, 1.0)  # the first to reach 1: later ones have no share
        return self.item_order[np.minimum(ranks, last)]


def by_task(rng: np.random.Generator, std: FloatArray, *shape: int) -> FloatArray:
    """Random effects [*shape, tasks]; half of the variance is shared by all tasks."""
    shared = rng.normal(0, np.sqrt(0.5), (*shape, 1))
    own = rng.normal(0, np.sqrt(0.5), (*shape, len(TASKS)))
    return (shared + own) * std


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probabilities of log odds."""
    return 1 / (1 + np.exp(-logits))


def mix(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 hash of each key (Steele et al. 2014)."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
