"""Replaces a share of the ids by 0 in training, so that the row of unknown ids is learned.

A vocabulary is made from train, so train has no unknown ids. Without this, row 0 would keep its
random initial values, and all new ids of valid and test would be looked up there.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infnet_dist.batch import BatchRows
from infnet_dist.data.hashing import stable_seed
from infnet_dist.data.manifest import Manifest
from infnet_dist.features.hashing import splitmix64
from infnet_dist.schema import Schema, TableFeature, sequence_key

IntArray = npt.NDArray[np.int64]
_MAX_ITEMS = 2**20  # items of a list, see schema.SequenceFeature

_MANY, _FEW = 0.05, 0.001  # thresholds on the share of unknown ids: in valid or test; in train
_DEFAULT_RATE = 0.05


@dataclass(frozen=True)
class UnknownIds:
    """Decides which ids are dropped to 0.

    Several ids of a new row are usually new together, e.g. a video with its author and music. So
    all fields of a row share one random number in [0, 1), and a field is dropped if its table's
    rate is above that number; likewise all attributes of a history item. Each id of a bag has a
    number of its own.

    Whether an id is dropped depends only on the seed, the epoch, the row's position in the epoch's
    order, the behaviour or bag and the item's position in its list: it is the same for any number
    of workers, and after a resume.

    Attributes:
        rates: share of the ids that is dropped, by table; 0 for other tables.
        seed: seed of the run.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def drop(
        self,
        values: torch.Tensor,
        lengths: torch.Tensor,
        features: Sequence[TableFeature],
        schema: Schema,
        rows: BatchRows,
    ) -> torch.Tensor:
        """The values of a KeyedJaggedTensor with dropped ids set to 0.

        Args:
            values: int64 [ids], key after key.
            lengths: int64 [keys, B], 0 for padding rows.
            features: the keys with their tables.
            schema: says which keys are lists.
            rows: position of the batch in the epoch's order.
        """
        if not any(self.rates.get(feature.table) for feature in features):
            return values
        lists = {sequence_key(s, a): s.name for s in schema.sequences for a in s.attributes}
        lists |= {bag.name: bag.name for bag in schema.bags}
        places_B = np.zeros(lengths.shape[1], np.int64)
        places_B[: sum(b - a for a, b in rows.intervals)] = np.concatenate(
            [np.arange(0), *(np.arange(*interval) for interval in rows.intervals)]
        )
        dropped, draws = np.zeros(len(values), bool), dict[str, npt.NDArray[np.floating[Any]]]()
        ends = lengths.sum(1).cumsum(0).tolist()
        for feature, count_B, end in zip(features, lengths.numpy(), ends, strict=True):
            if not (rate := self.rates.get(feature.table)):
                continue
            name = lists.get(feature.key, "")  # a behaviour's attributes have equal lengths
            if name not in draws:
                key = stable_seed(self.seed, "unknown id", rows.epoch, name)
                draws[name] = _share(key + _item_numbers(places_B, count_B))
            draw = draws[name]
            dropped[end - len(draw) : end] = draw < rate
        return values.masked_fill(torch.from_numpy(dropped), 0)


@dataclass
class OutOfVocabulary:
    """Replaces ids that a model doesn't know by 0, and counts them.

    They are those that its training set has gained since it was trained (`Table.num_ids`).

    Attributes:
        replaced: number of ids replaced, by key of the KeyedJaggedTensors.
        total: number of all ids of these keys.
    """

    replaced: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)

    def replace(
        self,
        values: torch.Tensor,
        lengths: torch.Tensor,
        features: Sequence[TableFeature],
        schema: Schema,
        *,
        uncounted: Collection[str] = (),
    ) -> torch.Tensor:
        """The values of a KeyedJaggedTensor; arguments as of `UnknownIds.drop`.

        `uncounted` are keys whose ids were counted in another KeyedJaggedTensor.
        """
        rows = {t.name: t.num_embeddings for t in schema.tables if t.num_ids is not None}
        if not any(feature.table in rows for feature in features):
            return values
        beyond = torch.zeros(len(values), dtype=torch.bool)
        ends = lengths.sum(1).cumsum(0).tolist()
        for feature, start, end in zip(features, [0, *ends], ends, strict=False):
            if feature.table not in rows:
                continue
            beyond[start:end] = values[start:end] >= rows[feature.table]
            if feature.key not in uncounted:
                self.replaced[feature.key] += int(beyond[start:end].sum())
                self.total[feature.key] += end - start
        return values.masked_fill(beyond, 0)


def _item_numbers(places_B: IntArray, count_B: IntArray) -> IntArray:
    """A number for each item, [items], from the row's position and the item's in its list."""
    before_B = np.cumsum(count_B, dtype=np.int64) - count_B
    return np.repeat(_MAX_ITEMS * places_B - before_B, count_B) + np.arange(int(count_B.sum()))


def _share(numbers: IntArray) -> npt.NDArray[np.floating[Any]]:
    """A hash of each number, in [0, 1)."""
    return (splitmix64(numbers) >> np.uint64(11)) * 2.0**-53


def default_rates(manifest: Manifest, schema: Schema) -> dict[str, float]:
    """The share of ids to drop, by table with many unknown ids in valid or test, but not in train.

    It is 0.05 for the table with the most unknown ids and proportional for others, so that ids are
    unknown together about as often as in valid and test. The user's table is excluded: most rows
    are of frequent users, which new users don't resemble.
    """
    shares: dict[str, float] = {}
    for split in manifest.splits.keys() - {"train"}:
        for table, share in unlearned_ids(manifest, schema, {}, split).values():
            shares[table] = max(share, shares.get(table, 0.0))
    for feature in schema.categorical:
        if feature.column in (schema.group_column, manifest.source.get("user")):
            shares.pop(feature.table, None)
    return {table: _DEFAULT_RATE * s / max(shares.values()) for table, s in shares.items()}


def unlearned_ids(
    manifest: Manifest, schema: Schema, rates: Mapping[str, float], split: str
) -> dict[str, tuple[str, float]]:
    """Features with many unknown ids in `split`, while the row of unknown ids isn't trained.

    Args:
        manifest: a manifest; without statistics nothing is found.
        schema: the selected features.
        rates: share of the ids that training drops, by table.
        split: the split to evaluate.

    Returns:
        The table, and the share of ids in `split` that are 0, by key of the KeyedJaggedTensor.
    """
    known = manifest.statistics.splits if manifest.statistics else {}
    if "train" not in known or split not in known:
        return {}
    tables: dict[str, list[tuple[str, float]]] = {}
    trained = set()
    for feature in schema.table_features:
        here, train = (known[name].features.get(feature.key) for name in (split, "train"))
        if here is None or train is None:
            continue
        if rates.get(feature.table) or (train.mean_length and 1 - train.coverage > _FEW):
            trained.add(feature.table)
        if here.mean_length and 1 - here.coverage > _MANY:
            tables.setdefault(feature.table, []).append((feature.key, 1 - here.coverage))
    return {
        key: (table, share)
        for table, found in tables.items()
        if table not in trained
        for key, share in found
    }
