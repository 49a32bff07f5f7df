"""Decoded rows -> RankingBatch."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.data.columns import Columns
from infnet_dist.schema import Schema


class Collator:
    """Turns up to `batch_size` rows into a batch of exactly `batch_size`; the rest is padding."""

    def __init__(self, schema: Schema, batch_size: int) -> None:
        """Fix the layout."""
        self._sequences = schema.sequences
        self._batch_size = batch_size
        self._keys = [feature.key for feature in schema.table_features]
        self._num_fields = len(schema.fields)

    def __call__(self, columns: Columns, rows: BatchRows) -> RankingBatch:
        """Collate `columns`, which came from `rows`."""
        plain = columns.plain
        return RankingBatch(
            sparse_features=self._sparse_features(columns),
            dense_BN=self._padded(plain["numbers"]),
            time_gap_BL=self._time_gaps(columns),
            labels_BK=self._padded(plain["labels"]),
            weights_B=self._padded(torch.ones(len(columns))),
            group_B=self._padded(plain["group"]),
            truth_BK=self._padded(plain["truth"]),
            rows=rows,
        )

    def _sparse_features(self, columns: Columns) -> KeyedJaggedTensor:
        values = [columns.plain["ids"].t().flatten()]
        lengths = torch.zeros(len(self._keys), self._batch_size, dtype=torch.int64)
        lengths[: self._num_fields, : len(columns)] = 1
        for i, key in enumerate(self._keys[self._num_fields :], self._num_fields):
            lists = columns.lists[key]
            values.append(lists.values)
            lengths[i, : len(columns)] = lists.lengths
        return KeyedJaggedTensor(
            keys=self._keys,
            values=torch.cat(values),
            lengths=lengths.flatten(),
            stride=self._batch_size,
        )

    def _time_gaps(self, columns: Columns) -> torch.Tensor:
        """Buckets of all behaviours side by side, uint8 [B, L]; 0 where there is no item."""
        sizes = [sequence.max_length for sequence in self._sequences]
        gaps_BL = torch.zeros(self._batch_size, sum(sizes), dtype=torch.uint8)
        for sequence, gaps_Bl in zip(self._sequences, gaps_BL.split(sizes, dim=1), strict=True):
            if sequence.time_gap_column is not None:
                lists = columns.lists[sequence.name]
                gaps_Bl[: len(columns)] = torch.ops.fbgemm.jagged_to_padded_dense(
                    lists.values.unsqueeze(1),
                    [lists.offsets],
                    [sequence.max_length],
                    0,
                ).squeeze(2)
        return gaps_BL

    def _padded(self, values: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [B, ...], filled up with zeros."""
        missing = self._batch_size - len(values)
        return torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
