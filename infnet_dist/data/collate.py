"""Arrow columns -> RankingBatch: list offsets become lengths, no Python loop over rows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.schema import DenseFeature, Schema, SequenceFeature

NUM_TIME_GAP_BUCKETS = 32

IntArray = npt.NDArray[np.int64]


class Collator:
    """Turns up to `batch_size` rows of Arrow columns into a batch of exactly `batch_size`."""

    def __init__(self, schema: Schema, batch_size: int) -> None:
        """Fix the layout; nothing is read from `schema` per batch that could be fixed here."""
        self._schema = schema
        self._batch_size = batch_size
        self._keys = [feature.key for feature in schema.table_features]
        self._num_items = sum(sequence.max_length for sequence in schema.sequences)

    def __call__(self, table: pa.RecordBatch, rows: BatchRows) -> RankingBatch:
        """Collate `table`, whose rows came from `rows`; missing rows become padding."""
        values, lengths = self._fields(table)
        time_gap_BL = np.zeros((self._batch_size, self._num_items), np.int64)
        first = 0
        for sequence in self._schema.sequences:
            last = first + sequence.max_length
            item_values, item_lengths = self._sequence(table, sequence, time_gap_BL[:, first:last])
            values += item_values
            lengths += item_lengths
            first = last
        return RankingBatch(
            sparse_features=KeyedJaggedTensor(
                keys=self._keys,
                values=torch.from_numpy(np.concatenate(values)),
                lengths=torch.from_numpy(np.concatenate(lengths)),
                stride=self._batch_size,
            ),
            dense_BN=torch.from_numpy(self._numbers(table)),
            time_gap_BL=torch.from_numpy(time_gap_BL),
            labels_BK=torch.from_numpy(self._labels(table)),
            weights_B=torch.from_numpy(self._pad(np.ones(table.num_rows, np.float32))),
            group_B=torch.from_numpy(self._pad(_numpy(table, self._schema.group_column))),
            truth_BK=torch.from_numpy(
                self._stack(table, [task.truth_column for task in self._schema.tasks])
            ),
            rows=rows,
        )

    def _fields(self, table: pa.RecordBatch) -> tuple[list[IntArray], list[IntArray]]:
        one_each = self._pad(np.ones(table.num_rows, np.int64))
        ids = [_numpy(table, f.column) for f in self._schema.categorical]
        ids += [bucketise(table.column(f.column), f) for f in self._schema.bucketised]
        return ids, [one_each] * len(ids)

    def _sequence(
        self, table: pa.RecordBatch, sequence: SequenceFeature, time_gap_BL: npt.NDArray
    ) -> tuple[list[IntArray], list[IntArray]]:
        """Ids and lengths of each attribute; fills the padded time gaps in place."""
        offsets = table.column(sequence.attributes[0].column).offsets
        lengths = np.diff(offsets.to_numpy()).astype(np.int64)
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = place < sequence.max_length  # newest first: the newest stay
        values = [
            table.column(a.column).flatten().to_numpy()[kept].astype(np.int64, copy=False)
            for a in sequence.attributes
        ]
        if sequence.time_gap_column is not None:
            gap_s = table.column(sequence.time_gap_column).flatten().to_numpy()[kept]
            row = np.repeat(np.arange(len(lengths)), lengths)[kept]
            time_gap_BL[row, place[kept]] = time_gap_bucket(gap_s)
        padded = self._pad(np.minimum(lengths, sequence.max_length))
        return values, [padded] * len(values)

    def _numbers(self, table: pa.RecordBatch) -> npt.NDArray[np.float32]:
        numbers_BN = self._stack(table, [f.column for f in self._schema.numeric])
        for i, feature in enumerate(self._schema.numeric):
            numbers_BN[: table.num_rows, i] -= feature.mean
            numbers_BN[: table.num_rows, i] /= feature.std
        return numbers_BN

    def _labels(self, table: pa.RecordBatch) -> npt.NDArray[np.float32]:
        labels_BK = self._stack(table, [task.column for task in self._schema.tasks])
        for k, task in enumerate(self._schema.tasks):
            if task.kind == "watch_time":
                labels_BK[:, k] /= task.mean_ms
        return labels_BK

    def _stack(
        self, table: pa.RecordBatch, columns: list[str] | list[str | None]
    ) -> npt.NDArray[np.float32]:
        """Float columns side by side, zero-padded; NaN where there is no column."""
        stacked = np.zeros((self._batch_size, len(columns)), np.float32)
        for i, column in enumerate(columns):
            stacked[: table.num_rows, i] = np.nan if column is None else _numpy(table, column)
        return stacked

    def _pad(self, values: npt.NDArray) -> npt.NDArray:
        return np.pad(values, (0, self._batch_size - len(values)))


def bucketise(column: pa.Array, feature: DenseFeature) -> IntArray:
    """Ids of a number: 0 for null, 1 + i where boundaries[i - 1] <= number < boundaries[i]."""
    assert feature.boundaries is not None
    numbers = column.to_numpy(zero_copy_only=False)
    buckets = 1 + np.searchsorted(np.asarray(feature.boundaries), numbers, side="right")
    return np.where(np.isnan(numbers), 0, buckets).astype(np.int64)


def time_gap_bucket(gap_s: IntArray) -> IntArray:
    """Powers of two of a gap in seconds: 1 for 1 s, 2 for 2-3 s, 3 for 4-7 s, ...; at most 31."""
    buckets = 1 + np.log2(np.maximum(gap_s, 1)).astype(np.int64)
    return np.minimum(buckets, NUM_TIME_GAP_BUCKETS - 1)


def _numpy(table: pa.RecordBatch, column: str) -> npt.NDArray:
    return table.column(column).to_numpy(zero_copy_only=False)
