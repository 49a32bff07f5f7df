"""What changes from day to day in synthetic logs: effects drift, and items are born.

Both are known exactly, so the truth columns hold the probabilities of each day.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.ingest.synthetic.world import (
    CHANGES_STREAM,
    DAY_MS,
    NUM_AGE_GROUPS,
    START_MS,
    TASKS,
    Features,
    FloatArray,
    Impressions,
    IntArray,
    by_task,
    mix,
)

_UPLOAD_MS = DAY_MS // 4  # items are uploaded in the last hours before their first day
_STEP = np.sqrt(3.0)  # uniform in [-_STEP, _STEP): variance 1


def days_of(times_ms: IntArray) -> IntArray:
    """Days since the start of the log, from 0, int64 [n]."""
    return (times_ms - START_MS) // DAY_MS


class Drift(NamedTuple):
    """A random walk, one step per day, of each item's quality and of tastes; 0 on the first day.

    Attributes:
        std: standard deviation of a step of log odds, of either.
        tastes: of age group and topic by day, float64 [days, age groups + 1, topics + 1, tasks].
    """

    seed: int
    std: float
    item_topic: IntArray
    user_age_group: IntArray
    tastes: FloatArray

    @classmethod
    def draw(
        cls, config: SyntheticIngest, item_topic: IntArray, user_age_group: IntArray, num_days: int
    ) -> "Drift":
        """The walks of `num_days` days."""
        rng = np.random.default_rng([CHANGES_STREAM, config.seed, 1])
        std = np.full(len(TASKS), config.drift)
        steps = by_task(rng, std, num_days, NUM_AGE_GROUPS + 1, config.num_topics + 1)
        steps[0] = 0
        return cls(config.seed, config.drift, item_topic, user_age_group, steps.cumsum(axis=0))

    def logits(self, rows: Impressions) -> FloatArray:
        """Log odds that the drift adds, float64 [n, tasks]."""
        days = days_of(rows.times_ms)
        topics = self.item_topic[rows.items]
        tastes: FloatArray = self.tastes[days, self.user_age_group[rows.users], topics]
        return tastes + self._qualities(rows.items, days)

    def _qualities(self, items: IntArray, days: IntArray) -> FloatArray:
        """The sum of the steps of each item, a hash of item, day and task: no state is kept."""
        walked = np.zeros((len(items), len(TASKS)))
        tasks = np.arange(len(TASKS), dtype=np.uint64)
        of_items = mix(mix(np.full(1, self.seed, np.uint64)) + items.astype(np.uint64))
        for day in range(1, int(days.max(initial=0)) + 1):
            keys = mix(mix(of_items + np.uint64(day))[:, None] + tasks)
            steps = (keys >> np.uint64(11)) * 2.0**-53 * 2 * _STEP - _STEP
            walked += steps * (days >= day)[:, None]
        return walked * self.std

    def columns(self, rows: Impressions) -> dict[str, pa.Array]:
        """No columns."""
        return {}

    def features(self) -> Features:
        """No features."""
        return Features()


class Births:
    """Items that appear on later days, and the shares of those that exist on a day.

    Args:
        config: the share of items that are born on each day after the first.
        order: the items by topic, int64 [items + 1].
        shares: share of the impressions of each item, float64 [items + 1].
        topic_stop: places in `order` after the last item of each topic, int64 [topics + 1].

    Attributes:
        first_day: by item, from 0, int64 [items + 1].
    """

    def __init__(
        self, config: SyntheticIngest, order: IntArray, shares: FloatArray, topic_stop: IntArray
    ) -> None:
        rng = np.random.default_rng([CHANGES_STREAM, config.seed, 2])
        place = rng.random(config.num_items + 1)
        daily, later_days = config.items_born_daily, config.num_days - 1
        born_later = place < daily * later_days
        day = np.minimum(1 + (place / daily).astype(np.int64), later_days)
        self.first_day = np.where(born_later, day, 0)
        self._early_ms = rng.integers(0, _UPLOAD_MS, config.num_items + 1)
        self._ordered_shares, self._ordered_days = shares[order], self.first_day[order]
        self._topic_stop = topic_stop
        self.shares_of = lru_cache(maxsize=2)(self._shares_of)

    def upload_ms(self, of_others: IntArray) -> IntArray:
        """Times of upload; those of items of the first day are given."""
        morning = START_MS + self.first_day * DAY_MS
        return np.where(self.first_day > 0, morning - 1 - self._early_ms, of_others)

    def _shares_of(self, day: int) -> tuple[FloatArray, FloatArray]:
        """`item_cdf` and `topic_cdf` of the world on a day."""
        shares = np.where(self._ordered_days <= day, self._ordered_shares, 0.0)
        cdf = np.cumsum(shares)
        cdf /= cdf[-1]
        return cdf, np.concatenate([[0.0], cdf[self._topic_stop - 1]])
