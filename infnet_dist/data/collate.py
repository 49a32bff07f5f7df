"""Rows -> RankingBatch, padded to the batch size."""

from collections.abc import Collection
from typing import NamedTuple

import fbgemm_gpu  # noqa: F401 (its operators)
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.data.decode import weights_key
from infnet_dist.data.row_views import Rows
from infnet_dist.data.unknown_ids import OutOfVocabulary, UnknownIds
from infnet_dist.schema import Schema, TableFeature


class Collator:
    """Makes batches of exactly `batch_size` rows from up to so many, with padding."""

    def __init__(
        self,
        schema: Schema,
        batch_size: int,
        unknown_ids: UnknownIds | None = None,
        out_of_vocabulary: OutOfVocabulary | None = None,
    ) -> None:
        """`unknown_ids` says which ids are dropped to 0, None: no ids; the other one counts."""
        self._schema = schema
        self._out_of_vocabulary = out_of_vocabulary or OutOfVocabulary()
        self._unknown_ids = unknown_ids or UnknownIds()
        self._sequences = schema.sequences
        self._batch_size = batch_size
        self._unweighted = _Keys.of(schema, schema.unweighted_keys)
        self._weighted = _Keys.of(schema, schema.weighted_keys)
        self._weights = {bag.name: weights_key(bag) for bag in schema.weighted_bags}
        self._dims = {vector.name: vector.dim for vector in schema.vectors}

    def __call__(self, picked: Rows, rows: BatchRows) -> RankingBatch:
        """Collate `picked`, the rows at the position `rows`."""
        scalars = {name: torch.from_numpy(values).T for name, values in picked.scalars.items()}
        has_weights = self._schema.weight_column is not None
        return RankingBatch(
            sparse_features=self._jagged(self._unweighted, picked, rows),
            weighted_features=self._weighted_features(picked, rows),
            vectors_BV=self._vectors(picked),
            dense_BN=self._padded(scalars["dense"]),
            time_gap_BL=self._time_gaps(picked),
            labels_BK=self._padded(scalars["labels"]),
            weights_B=self._padded(
                scalars["weights"][:, 0] if has_weights else torch.ones(len(picked))
            ),
            group_B=self._padded(scalars["group"][:, 0]),
            truth_BK=self._padded(scalars["truth"]),
            rows=rows,
        )

    def _jagged(self, keys: "_Keys", picked: Rows, rows: BatchRows) -> KeyedJaggedTensor:
        """The ids of these keys, without weights."""
        names, num_fields = keys.names, len(keys.fields)
        lengths = torch.zeros(len(names), self._batch_size, dtype=torch.int64)
        lengths[:num_fields, : len(picked)] = 1
        for i, key in enumerate(names[num_fields:], num_fields):
            lengths[i, : len(picked)] = picked.lengths(key)
        ids = picked.scalars["ids"]
        values = picked.items(
            names[num_fields:], before=ids if num_fields == len(ids) else ids[keys.fields]
        )
        twice = () if keys is self._unweighted else self._unweighted.names
        values = self._out_of_vocabulary.replace(
            values, lengths, keys.features, self._schema, uncounted=twice
        )
        return KeyedJaggedTensor(
            keys=names,
            values=self._unknown_ids.drop(values, lengths, keys.features, self._schema, rows),
            lengths=lengths.flatten(),
            stride=self._batch_size,
        )

    def _weighted_features(self, picked: Rows, rows: BatchRows) -> KeyedJaggedTensor | None:
        """The ids of weighted keys with their weights, which are 1 for keys without weights."""
        if not self._weighted.features:
            return None
        jagged = self._jagged(self._weighted, picked, rows)
        weights = picked.items([*self._weights.values()])
        if len(weights) < len(jagged.values()):
            given = iter(weights.split([int(picked.lengths(n).sum()) for n in self._weights]))
            weights = torch.cat(
                [
                    next(given) if key in self._weights else torch.ones(count)
                    for key, count in zip(jagged.keys(), jagged.length_per_key(), strict=True)
                ]
            )
        return KeyedJaggedTensor(
            keys=jagged.keys(),
            values=jagged.values(),
            weights=weights,
            lengths=jagged.lengths(),
            stride=self._batch_size,
        )

    def _vectors(self, picked: Rows) -> torch.Tensor:
        """All vectors side by side, [B, V]."""
        if not self._dims:
            return torch.empty(self._batch_size, 0)
        vectors_NV = picked.vectors(self._dims)
        return vectors_NV if len(picked) == self._batch_size else self._padded(vectors_NV)

    def _time_gaps(self, picked: Rows) -> torch.Tensor | None:
        """Time-gap buckets of all behaviours side by side, uint8 [B, L]; 0 if there is no item."""
        if not any(sequence.time_gap_column for sequence in self._sequences):
            return None
        sizes = [sequence.max_length for sequence in self._sequences]
        gaps_BL = torch.zeros(self._batch_size, sum(sizes), dtype=torch.uint8)
        for sequence, gaps_Bl in zip(self._sequences, gaps_BL.split(sizes, dim=1), strict=True):
            if sequence.time_gap_column is not None:
                lengths = picked.lengths(sequence.name).long()
                gaps_Bl[: len(picked)] = torch.ops.fbgemm.jagged_to_padded_dense(
                    picked.items([sequence.name]).unsqueeze(1),
                    [torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)],
                    [sequence.max_length],
                    0,
                ).squeeze(2)
        return gaps_BL

    def _padded(self, values: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [B, ...], padded with zeros."""
        padded = values.new_zeros(self._batch_size, *values.shape[1:])
        padded[: len(values)] = values
        return padded


class _Keys(NamedTuple):
    """Keys of a KeyedJaggedTensor.

    Attributes:
        names: the keys, in the order of the schema: fields, then lists.
        features: the same with their tables.
        fields: places of the fields among those of the schema.
    """

    names: list[str]
    features: list[TableFeature]
    fields: list[int]

    @classmethod
    def of(cls, schema: Schema, keys: Collection[str]) -> "_Keys":
        """These keys of the schema's."""
        features = [feature for feature in schema.table_features if feature.key in keys]
        fields = [i for i, field in enumerate(schema.fields) if field.key in keys]
        return cls([feature.key for feature in features], features, fields)
