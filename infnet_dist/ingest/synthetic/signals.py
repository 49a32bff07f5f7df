"""Optional columns of synthetic logs, each with an effect of its own on the labels.

    tags            a bag of the item; the mean of the effects of its tags
    interests       a weighted bag of the user; the sum of the effects of its interests by weight
    content         a vector of the item, null for some; a linear function of its numbers
    city, device    two ids of the row; an effect of their combination, none of either alone

They are independent of all other columns. With many items and users, of which each has few rows,
the effects can't be learned from ids of items and users.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.ingest.synthetic.world import (
    SIGNALS_STREAM,
    TASKS,
    Features,
    FloatArray,
    Impressions,
    IntArray,
    Signal,
    by_task,
    mix,
)
from infnet_dist.schema import BagFeature, CategoricalFeature, Table, VectorFeature

MAX_TAGS = 5  # of an item; some have none
MAX_INTERESTS = 4  # of a user, who has at least one
NULL_CONTENT = 0.1  # share of items without a vector

# Standard deviations of effects by task; each term of the logit then has one of 0.5.
TAG_STD = np.full(len(TASKS), 0.8)
INTEREST_STD = np.full(len(TASKS), 0.52)
CONTENT_STD = np.full(len(TASKS), 0.5)
PAIR_STD = np.full(len(TASKS), 0.5)

_WEIGHTS = np.repeat(np.array([0, 0.5, 1, 2], np.float32), [1, 7, 6, 6])  # of rows, equally likely


class Tags(NamedTuple):
    """Tags of items, from 1; `effect` [tags + 1, tasks] has row 0 for the unknown tag.

    The tags of item i are ids[offsets[i]:offsets[i + 1]].
    """

    offsets: IntArray
    ids: IntArray
    effect: FloatArray

    @classmethod
    def draw(cls, config: SyntheticIngest) -> "Tags":
        """Up to MAX_TAGS of each item; a tag may occur twice."""
        rng = np.random.default_rng([SIGNALS_STREAM, config.seed, 1])
        lengths = rng.integers(0, MAX_TAGS + 1, config.num_items + 1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(1, config.num_tags + 1, offsets[-1])
        return cls(offsets, ids, by_task(rng, TAG_STD, config.num_tags + 1))

    def logits(self, rows: Impressions) -> FloatArray:
        """Mean of the effects of the tags of the item; 0 without tags."""
        offsets, chosen = _of_owners(self.offsets, rows.items)
        sums = _sums(self.effect[self.ids[chosen]], offsets)
        return sums / np.maximum(np.diff(offsets), 1)[:, None]

    def columns(self, rows: Impressions) -> dict[str, pa.Array]:
        """The tags of the item."""
        offsets, chosen = _of_owners(self.offsets, rows.items)
        return {"tag_ids": _lists(offsets, self.ids[chosen])}

    def features(self) -> Features:
        """A bag."""
        return Features(
            tables=(Table(name="tag", num_embeddings=len(self.effect)),),
            bags=(BagFeature(name="tags", table="tag", column="tag_ids", max_length=MAX_TAGS),),
        )


class Interests(NamedTuple):
    """Interests of users and their weights, stored as `Tags` are."""

    offsets: IntArray
    ids: IntArray
    weights: npt.NDArray[np.float32]
    effect: FloatArray

    @classmethod
    def draw(cls, config: SyntheticIngest) -> "Interests":
        """1 to MAX_INTERESTS of each user; an interest may occur twice."""
        rng = np.random.default_rng([SIGNALS_STREAM, config.seed, 2])
        lengths = rng.integers(1, MAX_INTERESTS + 1, config.num_users + 1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(1, config.num_interests + 1, offsets[-1])
        weights = rng.uniform(0.1, 1.0, offsets[-1]).astype(np.float32)
        return cls(offsets, ids, weights, by_task(rng, INTEREST_STD, config.num_interests + 1))

    def logits(self, rows: Impressions) -> FloatArray:
        """Sum of the effects of the interests of the user, each times its weight."""
        offsets, chosen = _of_owners(self.offsets, rows.users)
        weights = self.weights[chosen].astype(np.float64)
        return _sums(self.effect[self.ids[chosen]] * weights[:, None], offsets)

    def columns(self, rows: Impressions) -> dict[str, pa.Array]:
        """The interests of the user and their weights."""
        offsets, chosen = _of_owners(self.offsets, rows.users)
        return {
            "interest_ids": _lists(offsets, self.ids[chosen]),
            "interest_weights": _lists(offsets, self.weights[chosen]),
        }

    def features(self) -> Features:
        """A weighted bag."""
        bag = BagFeature(
            name="interests",
            table="interest",
            column="interest_ids",
            pooling="sum",
            max_length=MAX_INTERESTS,
            weight_column="interest_weights",
        )
        table = Table(name="interest", num_embeddings=len(self.effect))
        return Features(tables=(table,), bags=(bag,))


class Content(NamedTuple):
    """Vectors of items, float32 [items + 1, dim], NaN for none; `effect` [dim, tasks]."""

    vectors: npt.NDArray[np.float32]
    effect: FloatArray

    @classmethod
    def draw(cls, config: SyntheticIngest) -> "Content":
        """Normal numbers."""
        rng = np.random.default_rng([SIGNALS_STREAM, config.seed, 3])
        vectors = rng.normal(size=(config.num_items + 1, config.content_dim)).astype(np.float32)
        vectors[rng.random(config.num_items + 1) < NULL_CONTENT] = np.nan
        std = CONTENT_STD / np.sqrt(config.content_dim)
        return cls(vectors, by_task(rng, std, config.content_dim))

    def logits(self, rows: Impressions) -> FloatArray:
        """A linear function of the vector of the item; 0 without one."""
        effect: FloatArray = np.nan_to_num(self.vectors[rows.items]).astype(np.float64)
        return effect @ self.effect

    def columns(self, rows: Impressions) -> dict[str, pa.Array]:
        """The vector of the item."""
        found = self.vectors[rows.items]
        null = np.isnan(found[:, 0])
        values = pa.array(np.nan_to_num(found).ravel())
        dim = len(self.effect)
        return {"content": pa.FixedSizeListArray.from_arrays(values, dim, mask=pa.array(null))}

    def features(self) -> Features:
        """A vector."""
        vector = VectorFeature(name="content", column="content", dim=len(self.effect))
        return Features(vectors=(vector,))


class CityAndDevice(NamedTuple):
    """The city and the device of a row; `effect` [cities + 1, devices + 1, tasks]."""

    seed: int
    effect: FloatArray

    @classmethod
    def draw(cls, config: SyntheticIngest) -> "CityAndDevice":
        """Effects whose mean over each city, and over each device, is 0."""
        rng = np.random.default_rng([SIGNALS_STREAM, config.seed, 4])
        effect = by_task(rng, PAIR_STD, config.num_cities + 1, config.num_devices + 1)
        known = effect[1:, 1:]
        known -= known.mean(axis=0, keepdims=True)
        known -= known.mean(axis=1, keepdims=True)
        return cls(config.seed, effect)

    def ids(self, rows: Impressions) -> tuple[IntArray, IntArray]:
        """City and device of each row, from 1, all equally likely."""
        cities, devices = self.effect.shape[0] - 1, self.effect.shape[1] - 1
        return (
            1 + _hashed(self.seed, rows.numbers, 1) % cities,
            1 + _hashed(self.seed, rows.numbers, 2) % devices,
        )

    def logits(self, rows: Impressions) -> FloatArray:
        """The effect of the combination."""
        return self.effect[self.ids(rows)]

    def columns(self, rows: Impressions) -> dict[str, pa.Array]:
        """The two ids."""
        city, device = self.ids(rows)
        return {"city_id": pa.array(city), "device_id": pa.array(device)}

    def features(self) -> Features:
        """Two ids; their cross is defined by the run (`data.crosses`)."""
        sizes = dict(zip(("city", "device"), self.effect.shape, strict=False))
        return Features(
            tables=tuple(Table(name=name, num_embeddings=n) for name, n in sizes.items()),
            categorical=tuple(
                CategoricalFeature(name=name, table=name, column=f"{name}_id") for name in sizes
            ),
        )


def draw_signals(config: SyntheticIngest) -> tuple[Signal, ...]:
    """The signals that `config` describes; each depends only on the sizes that it names."""
    found: list[Signal] = []
    if config.num_tags:
        found.append(Tags.draw(config))
    if config.num_interests:
        found.append(Interests.draw(config))
    if config.content_dim:
        found.append(Content.draw(config))
    if config.num_cities:
        found.append(CityAndDevice.draw(config))
    return tuple(found)


def sample_weights(seed: int, rows: Impressions) -> npt.NDArray[np.float32]:
    """Weights of rows, 0 to 2, independent of everything else."""
    return _WEIGHTS[_hashed(seed, rows.numbers, 3) % len(_WEIGHTS)]


def _hashed(seed: int, numbers: IntArray, purpose: int) -> IntArray:
    """A hash >= 0 of each number."""
    key = mix(mix(np.full(1, seed, np.uint64)) + np.uint64(purpose))
    return (mix(key + numbers.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def _of_owners(offsets: IntArray, owners: IntArray) -> tuple[IntArray, IntArray]:
    """Offsets of the lists of these owners, and the places of their items."""
    lengths = offsets[owners + 1] - offsets[owners]
    found = np.concatenate([[0], np.cumsum(lengths)])
    return found, np.repeat(offsets[owners] - found[:-1], lengths) + np.arange(found[-1])


def _sums(values: FloatArray, offsets: IntArray) -> FloatArray:
    """Sums of the lists of items; values are [items, tasks]."""
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    columns = [np.bincount(rows, column, len(offsets) - 1) for column in values.T]
    return np.stack(columns, axis=1)


def _lists(offsets: IntArray, values: npt.NDArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
