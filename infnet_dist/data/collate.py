"""Rows -> RankingBatch, padded to the batch size."""

import fbgemm_gpu  # noqa: F401 (its operators)
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.data.row_views import Rows
from infnet_dist.data.unknown_ids import UnknownIds
from infnet_dist.schema import Schema


class Collator:
    """Makes batches of exactly `batch_size` rows from up to so many, with padding."""

    def __init__(
        self, schema: Schema, batch_size: int, unknown_ids: UnknownIds | None = None
    ) -> None:
        """`unknown_ids` says which ids are dropped to 0; None: no ids."""
        self._schema = schema
        self._unknown_ids = unknown_ids or UnknownIds()
        self._sequences = schema.sequences
        self._batch_size = batch_size
        self._keys = [feature.key for feature in schema.table_features]
        self._num_fields = len(schema.fields)
        # Shared by all batches if no behaviour has time gaps: it may be megabytes of zeros.
        self._no_gaps_BL = torch.zeros(
            batch_size, sum(s.max_length for s in schema.sequences), dtype=torch.uint8
        )

    def __call__(self, picked: Rows, rows: BatchRows) -> RankingBatch:
        """Collate `picked`, the rows at the position `rows`."""
        scalars = {name: torch.from_numpy(values).T for name, values in picked.scalars.items()}
        return RankingBatch(
            sparse_features=self._sparse_features(picked, rows),
            weighted_features=None,
            vectors_BV=torch.empty(self._batch_size, 0),
            dense_BN=self._padded(scalars["dense"]),
            time_gap_BL=self._time_gaps(picked),
            labels_BK=self._padded(scalars["labels"]),
            weights_B=self._padded(torch.ones(len(picked))),
            group_B=self._padded(scalars["group"][:, 0]),
            truth_BK=self._padded(scalars["truth"]),
            rows=rows,
        )

    def _sparse_features(self, picked: Rows, rows: BatchRows) -> KeyedJaggedTensor:
        keys = self._keys[self._num_fields :]
        lengths = torch.zeros(len(self._keys), self._batch_size, dtype=torch.int64)
        lengths[: self._num_fields, : len(picked)] = 1
        for i, key in enumerate(keys, self._num_fields):
            lengths[i, : len(picked)] = picked.lengths(key)
        values = picked.items(keys, before=picked.scalars["ids"])
        return KeyedJaggedTensor(
            keys=self._keys,
            values=self._unknown_ids.drop(values, lengths, self._schema, rows),
            lengths=lengths.flatten(),
            stride=self._batch_size,
        )

    def _time_gaps(self, picked: Rows) -> torch.Tensor:
        """Time-gap buckets of all behaviours side by side, uint8 [B, L]; 0 if there is no item."""
        if not any(sequence.time_gap_column for sequence in self._sequences):
            return self._no_gaps_BL
        gaps_BL = torch.zeros_like(self._no_gaps_BL)
        sizes = [sequence.max_length for sequence in self._sequences]
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
