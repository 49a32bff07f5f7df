"""Drops a share of the ids to row 0 while training, so that the row of unknown ids is learned.

A vocabulary is made of train, so no row of train has an unknown id: without this, row 0 would keep
its random start, and all that is new in the split that is scored would be looked up there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infnet_dist.batch import BatchRows
from infnet_dist.data.hashing import mix, stable_seed
from infnet_dist.data.manifest import Manifest
from infnet_dist.schema import Schema, sequence_key

IntArray = npt.NDArray[np.int64]
_MAX_ITEMS = 2**20  # of a list, see schema.SequenceFeature

_MANY, _FEW = 0.05, 0.001  # shares of unknown ids: in the split that is scored; in train
_DEFAULT_RATE = 0.05


@dataclass(frozen=True)
class UnknownIds:
    """Which ids are dropped.

    What is new is mostly new in several ways, e.g. a video with its author and music. So all fields
    of a row share one random number in [0, 1), and each whose table's rate is above it is dropped;
    likewise all attributes of a history's item.

    Whether an id is dropped depends on the seed, the epoch, the row's place in the epoch's order,
    the behaviour and the item's place in its list alone: it is the same for any number of workers,
    and wherever a run was resumed.

    Attributes:
        rates: share of the ids that is dropped, by table; 0 where a table isn't named.
        seed: of the run.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def drop(
        self, values: torch.Tensor, lengths: torch.Tensor, schema: Schema, rows: BatchRows
    ) -> torch.Tensor:
        """The values of a KeyedJaggedTensor, 0 where an id is dropped.

        Args:
            values: int64 [ids], key after key.
            lengths: int64 [keys, B], 0 in padding rows.
            schema: its `table_features` are the keys.
            rows: where the batch came from.
        """
        if not any(self.rates.get(feature.table) for feature in schema.table_features):
            return values
        behaviours = {sequence_key(s, a): s.name for s in schema.sequences for a in s.attributes}
        places_B = np.zeros(lengths.shape[1], np.int64)
        places_B[: sum(b - a for a, b in rows.intervals)] = np.concatenate(
            [np.arange(0), *(np.arange(*interval) for interval in rows.intervals)]
        )
        dropped, draws = np.zeros(len(values), bool), dict[str, npt.NDArray[np.floating[Any]]]()
        ends = lengths.sum(1).cumsum(0).tolist()
        for feature, count_B, end in zip(schema.table_features, lengths.numpy(), ends, strict=True):
            if not (rate := self.rates.get(feature.table)):
                continue
            behaviour = behaviours.get(feature.key, "")  # its attributes have equal lengths
            if behaviour not in draws:
                key = stable_seed(self.seed, "unknown id", rows.epoch, behaviour)
                draws[behaviour] = _share(key + _item_numbers(places_B, count_B))
            draw = draws[behaviour]
            dropped[end - len(draw) : end] = draw < rate
        return values.masked_fill(torch.from_numpy(dropped), 0)


def _item_numbers(places_B: IntArray, count_B: IntArray) -> IntArray:
    """A number for each item of each row, [items]: by the row's place, and its own in the list."""
    before_B = np.cumsum(count_B, dtype=np.int64) - count_B
    return np.repeat(_MAX_ITEMS * places_B - before_B, count_B) + np.arange(int(count_B.sum()))


def _share(numbers: IntArray) -> npt.NDArray[np.floating[Any]]:
    """A hash of each number in [0, 1)."""
    return (mix(numbers) >> np.uint64(11)) * 2.0**-53


def default_rates(manifest: Manifest, schema: Schema) -> dict[str, float]:
    """The share of ids to drop, by table with many unknown ids in valid or test, but not in train.

    The table with the most unknown ids is dropped at 0.05 and others in proportion, so that ids are
    unknown together about as often as there. The user's table isn't among them: of rows drawn
    evenly most are of frequent users, whom new ones don't resemble.
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
    """Features whose unknown ids are many in `split` and were never trained.

    Args:
        manifest: its statistics are those of a sample; without any, nothing is found.
        schema: the selected features.
        rates: share of the ids that training drops, by table.
        split: that is scored.

    Returns:
        Table, and share of the ids of `split` that are 0, by key of the KeyedJaggedTensor.
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
