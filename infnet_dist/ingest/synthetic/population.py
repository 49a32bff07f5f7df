"""Draws the users, items and authors of a world, and calibrates its base rates.

The strengths below are chosen so that a model that reads histories can approach the optimum with
about 160,000 rows, while a sum of id effects can't: most of the signal is the match and the visible
attributes; the hidden effects of items and users are small.
"""

import numpy as np
import numpy.typing as npt

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.ingest.synthetic.changes import Births, Drift
from infnet_dist.ingest.synthetic.signals import draw_signals
from infnet_dist.ingest.synthetic.world import (
    DAY_MS,
    NUM_AGE_GROUPS,
    NUM_TABS,
    PILOT_STREAM,
    START_MS,
    TASKS,
    WORLD_STREAM,
    FloatArray,
    IntArray,
    World,
    by_task,
    sigmoid,
)

CATALOGUE_DAYS = 60  # maximum age of an item at the start of the log, in days
BASE_RATES = (0.34, 0.06, 0.16)

# Logit weights and standard deviations by task, in the order of TASKS.
BAIT = np.array([0.45, 0.0, -0.45])
DURATION = np.array([0.50, -0.20, -0.75])
AUTHOR_STD = np.array([0.35, 0.35, 0.35])
ITEM_STD = np.array([0.10, 0.10, 0.10])
USER_STD = np.array([0.15, 0.15, 0.15])
AGE_STD = np.array([0.35, 0.40, 0.35])
TAB_STD = np.array([0.50, 0.50, 0.50])
TASTE_STD = np.array([0.20, 0.20, 0.20])

# Duration of a favourite in impressions of the user. Since it is counted in impressions, not hours,
# the last `history_length` clicks show the current taste of heavy and of light users.
FAVOURITE_IMPRESSIONS = 600
TOPICS_PER_FAVOURITE = 6  # number of topics per simultaneous favourite of a user
USER_EXPONENT = 0.9
ITEM_EXPONENT = 0.8
_PILOT_ROWS = 20_000


def build_world(config: SyntheticIngest) -> World:
    """The world that `config` describes, determined by its sizes and its seed."""
    rng = np.random.default_rng([WORLD_STREAM, config.seed])
    user_share = _power_law(rng, config.num_users, USER_EXPONENT)
    item_share = _power_law(rng, config.num_items, ITEM_EXPONENT)
    item_author, item_topic = _authors_and_topics(rng, config)
    order = np.argsort(item_topic, kind="stable")
    item_cdf = _cumulate(item_share[order])
    topic_stop = np.searchsorted(item_topic[order], np.arange(config.num_topics + 1), side="right")
    log_duration, duration_s = _durations(rng, item_topic, config.num_topics)
    age_group = _reserve_zero(rng.integers(1, NUM_AGE_GROUPS + 1, config.num_users))
    author = by_task(rng, AUTHOR_STD, config.num_authors + 1)
    bait = rng.normal(0, 1, (config.num_topics + 1, 1)) * BAIT
    quality = by_task(rng, ITEM_STD, config.num_items + 1)
    tendency = by_task(rng, USER_STD, config.num_users + 1)
    age = by_task(rng, AGE_STD, NUM_AGE_GROUPS + 1)
    step_ms = max(1, config.num_days * DAY_MS // config.num_rows)
    upload_ms = START_MS - 1 - rng.integers(0, CATALOGUE_DAYS * DAY_MS, config.num_items + 1)
    births = Births(config, order, item_share, topic_stop) if config.items_born_daily else None
    signals = draw_signals(config)
    if config.drift:
        num_days = -(-config.num_rows * step_ms // DAY_MS)
        signals += (Drift.draw(config, item_topic, age_group, num_days),)
    favourites_of = _favourites_of(config)
    draft = World(
        seed=config.seed,
        num_topics=config.num_topics,
        step_ms=step_ms,
        user_cdf=_cumulate(user_share),
        item_order=order,
        item_cdf=item_cdf,
        topic_cdf=np.concatenate([[0.0], item_cdf[topic_stop - 1]]),
        item_author=item_author,
        item_topic=item_topic,
        item_duration_s=duration_s,
        item_upload_ms=births.upload_ms(upload_ms) if births else upload_ms,
        user_age_group=age_group,
        favourite_ms=FAVOURITE_IMPRESSIONS * step_ms / np.maximum(user_share, 1e-12),
        favourite_phase=rng.random((config.num_users + 1, len(favourites_of))),
        favourites_of=favourites_of,
        item_effect=author[item_author]
        + bait[item_topic]
        + log_duration[:, None] * DURATION
        + quality,
        user_effect=age[age_group] + tendency,
        tab_effect=by_task(rng, TAB_STD, NUM_TABS + 1),
        taste_effect=by_task(rng, TASTE_STD, NUM_AGE_GROUPS + 1, config.num_topics + 1),
        signals=signals,
        intercept=np.zeros(len(TASKS)),
        births=births,
    )
    return _calibrate(draft, config.num_rows)


def _favourites_of(config: SyntheticIngest) -> npt.NDArray[np.bool_]:
    """Mask of the favourites of each task, bool [favourites, tasks]: all, or separate ones."""
    number = max(1, round(config.num_topics / TOPICS_PER_FAVOURITE))
    if not config.own_favourites:
        return np.ones((number, len(TASKS)), bool)
    return np.repeat(np.eye(len(TASKS), dtype=bool), number, axis=0)


def _authors_and_topics(
    rng: np.random.Generator, config: SyntheticIngest
) -> tuple[IntArray, IntArray]:
    """Author and topic of each item; mostly the topic of the author."""
    author = _reserve_zero(rng.integers(1, config.num_authors + 1, config.num_items))
    author_topic = _reserve_zero(rng.integers(1, config.num_topics + 1, config.num_authors))
    any_topic = _reserve_zero(rng.integers(1, config.num_topics + 1, config.num_items))
    faithful = rng.random(config.num_items + 1) < 0.6
    return author, np.where(faithful, author_topic[author], any_topic)


def _durations(
    rng: np.random.Generator, item_topic: IntArray, num_topics: int
) -> tuple[FloatArray, npt.NDArray[np.float32]]:
    """Standardised log durations and durations in seconds; topics differ in length."""
    by_topic = rng.normal(0, 0.4, num_topics + 1)
    log_duration = by_topic[item_topic] + rng.normal(0, 0.9, len(item_topic))
    return log_duration, np.exp(3.3 + 0.7 * log_duration).astype(np.float32)


def _calibrate(draft: World, num_rows: int) -> World:
    """Choose the intercepts by bisection on a pilot log that covers the whole time range."""
    rng = np.random.default_rng([PILOT_STREAM, draft.seed])
    rows = np.sort(rng.integers(0, num_rows, _PILOT_ROWS))
    logits = draft.logits(draft.draw(rng, rows))
    low, high = np.full(len(TASKS), -20.0), np.full(len(TASKS), 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        too_low = sigmoid(logits + middle).mean(axis=0) < BASE_RATES
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return World(**{**vars(draft), "intercept": (low + high) / 2})


def _power_law(rng: np.random.Generator, count: int, exponent: float) -> FloatArray:
    """Shares of ids 0 to count, in random order; 0 for id 0.

    Ranks start at 1 + count / 100, so that the share of a single id doesn't grow with the log.
    """
    shares = (np.arange(count) + 1 + count / 100) ** -exponent
    shares = rng.permutation(shares)
    return np.concatenate([[0.0], shares / shares.sum()])


def _cumulate(shares: FloatArray) -> FloatArray:
    """Running sums that end in exactly 1, so that draws from [0, 1) are always in range."""
    sums = np.cumsum(shares)
    return sums / sums[-1]


def _reserve_zero(values: IntArray) -> IntArray:
    """Prepend 0, the value of the unknown id."""
    return np.concatenate([[0], values])
