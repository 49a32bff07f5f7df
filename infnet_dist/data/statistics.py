"""Statistics of ids and list lengths, from samples of rows; for reports and planning."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from infnet_dist.batch import RankingBatch
from infnet_dist.data.manifest import (
    FeatureStatistics,
    Manifest,
    SplitStatistics,
    Statistics,
    TableStatistics,
)
from infnet_dist.data.part_files import ARROW, OpenPart
from infnet_dist.data.reader import Reader
from infnet_dist.schema import Schema

IntArray = npt.NDArray[np.int64]
_BATCH_SIZE = 4_096
_BATCHES = 16
_COMMON = 50  # most frequent ids, whose shares in train and valid are compared


@dataclass(frozen=True)
class TableUsage:
    """Lookups of a sample of train.

    Attributes:
        mean_lengths: mean number of ids per row, by key of the KeyedJaggedTensor.
        lookups: number of sampled ids by table, at most the table's rows: more would contain all
            rows, whatever the skew.
        distinct: number of distinct ids among them, by table.
    """

    mean_lengths: Mapping[str, float]
    lookups: Mapping[str, int]
    distinct: Mapping[str, int]


def sample_usage(
    folder: Path, manifest: Manifest, schema: Schema, open_part: OpenPart = ARROW
) -> TableUsage:
    """Lookups of train, from the manifest's statistics or a sample of up to 65,536 rows.

    Args:
        folder: the training set.
        manifest: its manifest, with all features.
        schema: the selected features.
        open_part: opens a part.

    Raises:
        DataError: a part can't be read; names the file.
    """
    known = manifest.statistics
    train = known.splits.get("train") if known else None
    if known and train and schema == manifest.schema_ and _is_complete(known, train, schema):
        features, tables = train.features, known.tables
    else:
        sample = _Sample(folder, manifest, schema, "train", open_part)
        features, tables = sample.features(), sample.tables()
    return TableUsage(
        mean_lengths={key: feature.mean_length for key, feature in features.items()},
        lookups={name: table.lookups for name, table in tables.items()},
        distinct={name: table.distinct for name, table in tables.items()},
    )


def _is_complete(known: Statistics, train: SplitStatistics, schema: Schema) -> bool:
    """Whether statistics, which other software may have written, cover all keys and tables."""
    keys = {feature.key for feature in schema.table_features}
    return train.features.keys() >= keys and known.tables.keys() >= {t.name for t in schema.tables}


def sample_statistics(folder: Path, manifest: Manifest) -> Statistics:
    """Statistics of up to 65,536 rows of each split, from row groups in shuffled order.

    Raises:
        DataError: a part can't be read; names the file.
    """
    schema = manifest.schema_
    samples = {split: _Sample(folder, manifest, schema, split) for split in manifest.splits}
    splits = {
        split: SplitStatistics(rows=sample.rows, features=sample.features(), vectors=sample.vectors)
        for split, sample in samples.items()
    }
    drift = {}
    if "valid" in samples:
        train, valid = samples["train"].ids, samples["valid"].ids
        drift = {key: _distance(train[key], valid[key]) for key in train}
    return Statistics(splits=splits, tables=samples["train"].tables(), drift=drift)


class _Sample:
    """Ids and lengths of sampled rows of a split.

    Attributes:
        rows: number of rows.
        ids: by key of the KeyedJaggedTensors, int64 [ids].
        vectors: share of rows that have one, by vector.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        schema: Schema,
        split: str,
        open_part: OpenPart = ARROW,
    ) -> None:
        reader = Reader(
            folder=folder,
            manifest=manifest,
            schema=schema,
            split=split,
            batch_size=_BATCH_SIZE,
            rank=0,
            world_size=1,
            shuffle_rows=_BATCH_SIZE * _BATCHES,
            open_part=open_part,
        )
        self._schema = schema
        self.rows = 0
        keys = [feature.key for feature in schema.table_features]
        ids: dict[str, list[IntArray]] = {key: [] for key in keys}
        lengths: dict[str, list[IntArray]] = {key: [] for key in keys}
        present = torch.zeros(len(schema.vectors), dtype=torch.int64)
        dims = [vector.dim for vector in schema.vectors]
        for batch in islice(reader.batches(), _BATCHES):
            self.rows += batch.num_rows
            for key, jagged in _jagged_by_key(batch).items():
                ids[key].append(jagged.values().numpy())  # padding rows have none
                lengths[key].append(jagged.lengths().numpy()[: batch.num_rows])
            first_BF = batch.vectors_BV[: batch.num_rows, np.cumsum([0, *dims])[:-1]]
            present += (~first_BF.isnan()).sum(0)
        self.ids = {key: np.concatenate(found) for key, found in ids.items()}
        self._lengths = {key: np.concatenate(found) for key, found in lengths.items()}
        shares = (present / max(self.rows, 1)).tolist()
        self.vectors = {v.name: s for v, s in zip(schema.vectors, shares, strict=True)}

    def features(self) -> dict[str, FeatureStatistics]:
        return {key: self._feature(key) for key in self.ids}

    def _feature(self, key: str) -> FeatureStatistics:
        ids, lengths = self.ids[key], self._lengths[key]
        known = ids[ids != 0]
        counts = np.unique(known, return_counts=True)[1]
        return FeatureStatistics(
            mean_length=float(lengths.mean()),
            p99_length=float(np.percentile(lengths, 99)),
            coverage=len(known) / max(len(ids), 1),
            distinct=len(counts),
            top_share=float(counts.max(initial=0) / max(len(known), 1)),
        )

    def tables(self) -> dict[str, TableStatistics]:
        found = {}
        for table in self._schema.tables:
            features = [f for f in self._schema.table_features if f.table == table.name]
            ids = np.concatenate([self.ids[f.key] for f in features])
            ids = _thinned(ids, table.num_embeddings)
            found[table.name] = TableStatistics(lookups=len(ids), distinct=len(np.unique(ids)))
        return found


def _jagged_by_key(batch: RankingBatch) -> dict[str, JaggedTensor]:
    """The ids of each key, weighted or not."""
    found: dict[str, JaggedTensor] = batch.sparse_features.to_dict()
    if batch.weighted_features is not None:  # some keys are in both, with the same ids
        found = batch.weighted_features.to_dict() | found
    return found


def _thinned(values: IntArray, most: int) -> IntArray:
    """At most `most` of the values, evenly spaced."""
    return values[np.linspace(0, len(values) - 1, min(len(values), most)).astype(np.int64)]


def _distance(train: IntArray, valid: IntArray) -> float:
    """Total variation distance of two samples: shares of train's common ids, of 0, of the rest.

    0: equal shares; 1: disjoint ids.
    """
    if not len(train) or not len(valid):
        return 0.0
    values, counts = np.unique(train[train != 0], return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[:_COMMON]])
    shares = [_shares(ids, common) for ids in (train, valid)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _shares(ids: IntArray, common: IntArray) -> npt.NDArray[np.float64]:
    """Shares of 0, of each common id, and of all others."""
    counts = np.zeros(len(common) + 2)
    counts[0] = np.count_nonzero(ids == 0)
    if len(common):
        place = np.minimum(np.searchsorted(common, ids), len(common) - 1)
        hit = (common[place] == ids) & (ids != 0)
        counts[1:-1] = np.bincount(place[hit], minlength=len(common))
    counts[-1] = len(ids) - counts.sum()
    return counts / len(ids)
