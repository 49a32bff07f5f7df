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
from infnet_dist.schema import Schema

IntArray = npt.NDArray[np.int64]
_MAX_ITEMS = 2**20  # of a list, see schema.SequenceFeature

_MANY, _FEW = 0.05, 0.001  # shares of ids: worth a warning in the split that is scored; in train


@dataclass(frozen=True)
class UnknownIds:
    """Which ids are dropped: in a few rows half of them, each by itself, items of lists too.

    What is new is mostly new in several ways, e.g. a video with its author: rows with one unknown
    id alone don't teach a model those with more. At rate r, twice that share of the rows is
    chosen, and in these each id is dropped with probability 1/2. (Above a rate of 1/2: in all
    rows, with probability r.)

    Whether an id is dropped depends on the seed, the epoch, the row's place in the epoch's order,
    the feature and the item's place in its list alone: it is the same for any number of workers,
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
        features = schema.table_features
        rates = np.array([self.rates.get(feature.table, 0.0) for feature in features])
        if not rates.any():
            return values
        keys = [stable_seed(self.seed, "unknown id", rows.epoch, f.key) for f in features]
        places = np.zeros(lengths.shape[1], np.int64)
        places[: sum(b - a for a, b in rows.intervals)] = np.concatenate(
            [np.arange(0), *(np.arange(*interval) for interval in rows.intervals)]
        )
        row_key = stable_seed(self.seed, "unknown id", rows.epoch)
        chosen_KB = _share(places + row_key) < np.minimum(2 * rates, 1)[:, None]
        count = lengths.numpy().reshape(-1)
        numbers = np.array(keys)[:, None] + _MAX_ITEMS * places  # of each list's first item
        numbers = numbers.reshape(-1) - (count.cumsum() - count)
        (chosen,) = np.repeat(chosen_KB.reshape(-1), count).nonzero()
        number = np.repeat(numbers, count)[chosen] + chosen
        limit = np.repeat(np.maximum(rates, 0.5), lengths.sum(1).numpy())[chosen]
        dropped = chosen[_share(number) < limit]
        return values.index_fill(0, torch.from_numpy(dropped), 0)


def _share(numbers: IntArray) -> npt.NDArray[np.floating[Any]]:
    """A hash of each number in [0, 1)."""
    return (mix(numbers) >> np.uint64(11)) * 2.0**-53


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
