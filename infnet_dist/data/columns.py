"""Arrow columns -> plain arrays of many rows, to be put in order and cut into batches.

Ids are copied twice between decoding and batch: when row groups are joined, and when rows are
picked in shuffled order; a batch is then a slice. Nothing here loops over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import fbgemm_gpu  # noqa: F401 (its operators)
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from infnet_dist.errors import DataError
from infnet_dist.schema import DenseFeature, Schema, SequenceFeature, sequence_key

NUM_TIME_GAP_BUCKETS = 32

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """N lists of ids: row i owns values[offsets[i]:offsets[i + 1]].

    Attributes:
        offsets: int64 [N + 1], from 0 on.
        values: int64 [items].
    """

    offsets: IntArray
    values: IntArray

    def pick(self, rows: IntArray) -> "Lists":
        """These rows, in this order."""
        lengths, values, _ = torch.ops.fbgemm.permute_1D_sparse_data(
            torch.from_numpy(rows.astype(np.int32)),
            torch.from_numpy(np.diff(self.offsets)),
            torch.from_numpy(self.values),
            None,
            None,
        )
        return Lists(_offsets(lengths.numpy()), values.numpy())

    def cut(self, start: int, stop: int) -> "Lists":
        """Rows [start, stop); the values are a view."""
        offsets = self.offsets[start : stop + 1]
        return Lists(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])

    def newest(self, count: int) -> "Lists":
        """The first `count` items of each list: histories stand newest first."""
        lengths = np.diff(self.offsets)
        if len(lengths) == 0 or lengths.max() <= count:
            return self
        place = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], lengths)
        return Lists(_offsets(np.minimum(lengths, count)), self.values[place < count])


@dataclass(frozen=True)
class Columns:
    """N rows of a training set, decoded. Letters: F fields, M plain numbers, K tasks.

    Attributes:
        plain: `ids` int64 [N, F] in `Schema.fields` order; `numbers` float32 [N, M], standardised;
            `labels` float32 [N, K], NaN where nobody knows, a watch time over the training window's
            mean; `truth` float32 [N, K], NaN where unknown; `group` int64 [N].
        lists: by key of the KeyedJaggedTensor the ids of a sequence attribute, at most `max_length`
            a row; by name of the behaviour the buckets of its time gaps, if it has any.
    """

    plain: dict[str, npt.NDArray]
    lists: dict[str, Lists]

    def __len__(self) -> int:
        """Rows."""
        return len(self.plain["group"])

    def pick(self, rows: IntArray) -> "Columns":
        """These rows, in this order."""
        return Columns(
            {name: values.take(rows, axis=0) for name, values in self.plain.items()},
            {name: lists.pick(rows) for name, lists in self.lists.items()},
        )

    def cut(self, start: int, stop: int) -> "Columns":
        """Rows [start, stop), as views."""
        return Columns(
            {name: values[start:stop] for name, values in self.plain.items()},
            {name: lists.cut(start, stop) for name, lists in self.lists.items()},
        )


def join(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts."""
    plain = {name: np.concatenate([p.plain[name] for p in parts]) for name in parts[0].plain}
    lists = {name: _join([p.lists[name] for p in parts]) for name in parts[0].lists}
    return Columns(plain, lists)


def decode(table: pa.Table, schema: Schema, where: str) -> Columns:
    """The columns of `schema` as arrays.

    Args:
        table: a row group.
        schema: features and tasks to read.
        where: file and row group, for messages.

    Raises:
        DataError: null items in lists, or a behaviour's lists differ in length.
    """
    columns = {name: table.column(name).combine_chunks() for name in schema.columns}
    ids = [columns[feature.column].to_numpy() for feature in schema.categorical]
    ids += [bucketise(columns[feature.column], feature) for feature in schema.bucketised]
    numbers = _floats(columns, [feature.column for feature in schema.numeric], len(table))
    for i, feature in enumerate(schema.numeric):
        numbers[:, i] -= feature.mean
        numbers[:, i] /= feature.std
    labels = _floats(columns, [task.column for task in schema.tasks], len(table))
    for k, task in enumerate(schema.tasks):
        if task.kind == "watch_time":
            labels[:, k] /= task.mean_ms
    lists: dict[str, Lists] = {}
    for sequence in schema.sequences:
        lists |= _behaviour(columns, sequence, where)
    return Columns(
        {
            "ids": np.stack(ids, axis=1),
            "numbers": numbers,
            "labels": labels,
            "truth": _floats(columns, [task.truth_column for task in schema.tasks], len(table)),
            "group": columns[schema.group_column].to_numpy(),
        },
        lists,
    )


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


def _behaviour(
    columns: dict[str, pa.Array], sequence: SequenceFeature, where: str
) -> dict[str, Lists]:
    """A behaviour's attributes and time gaps, checked for what footers can't tell."""
    found = {sequence_key(sequence, a): a.column for a in sequence.attributes}
    if sequence.time_gap_column is not None:
        found[sequence.name] = sequence.time_gap_column
    lists = {key: _lists(columns[column], column, where) for key, column in found.items()}
    for (first, one), (second, other) in pairwise(zip(found.values(), lists.values(), strict=True)):
        if not np.array_equal(one.offsets, other.offsets):
            raise DataError(
                f"{where}: columns {first!r} and {second!r} have lists of different lengths in a "
                "row; a behaviour's attributes must be parallel; ingest again"
            )
    if sequence.time_gap_column is not None:
        gaps = lists[sequence.name]
        lists[sequence.name] = Lists(gaps.offsets, time_gap_bucket(gaps.values))
    return {key: entry.newest(sequence.max_length) for key, entry in lists.items()}


def _lists(column: pa.ListArray, name: str, where: str) -> Lists:
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{where}, column {name!r}: null items in lists; ingest again")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return Lists(offsets - offsets[0], values.to_numpy())


def _join(parts: Sequence[Lists]) -> Lists:
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Lists(_offsets(lengths), np.concatenate([part.values for part in parts]))


def _offsets(lengths: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _floats(
    columns: dict[str, pa.Array], names: Sequence[str | None], num_rows: int
) -> npt.NDArray[np.float32]:
    """Float columns side by side, [N, names]; NaN where null or there is no column."""
    floats = np.full((num_rows, len(names)), np.nan, np.float32)
    for i, name in enumerate(names):
        if name is not None:
            floats[:, i] = columns[name].to_numpy(zero_copy_only=False)
    return floats
