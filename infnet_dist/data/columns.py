"""Arrow columns -> plain tensors of many rows, from which batches are picked.

The items of lists are copied three times between decoding and batch: when row groups are joined (in
memory that is used again), when a batch's rows are picked, and when its keys are put together.
Nothing here loops over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import fbgemm_gpu  # noqa: F401 (its operators)
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from infnet_dist.data.hashing import hashed_rows
from infnet_dist.errors import DataError
from infnet_dist.schema import DenseFeature, Schema, SequenceFeature, Table, sequence_key

NUM_TIME_GAP_BUCKETS = 32

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """N lists of ids: row i owns values[offsets[i]:offsets[i + 1]].

    Attributes:
        offsets: int64 [N + 1], from 0 on.
        values: int64 [items].
    """

    offsets: torch.Tensor
    values: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [N]."""
        return self.offsets.diff()

    def pick(self, rows: IntArray) -> "Lists":
        """These rows, in this order."""
        places = torch.from_numpy(rows.astype(np.int32))
        lengths, values, _ = torch.ops.fbgemm.permute_1D_sparse_data(
            places, self.lengths, self.values, None, None
        )
        return Lists(_offsets(lengths), values)

    def newest(self, count: int) -> "Lists":
        """The first `count` items of each list: histories stand newest first."""
        lengths = self.lengths
        if len(lengths) == 0 or lengths.max() <= count:
            return self
        place = torch.arange(len(self.values)) - self.offsets[:-1].repeat_interleave(lengths)
        return Lists(_offsets(lengths.clamp(max=count)), self.values[place < count])


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

    plain: dict[str, torch.Tensor]
    lists: dict[str, Lists]

    def __len__(self) -> int:
        """Rows."""
        return len(self.plain["group"])

    def pick(self, rows: IntArray) -> "Columns":
        """A copy of these rows, in this order."""
        places = torch.from_numpy(rows)
        return Columns(
            {name: values.index_select(0, places) for name, values in self.plain.items()},
            {name: lists.pick(rows) for name, lists in self.lists.items()},
        )


class Joiner:
    """Joins rows in memory that it keeps: fresh pages for every block cost more than the copy."""

    def __init__(self) -> None:
        """Nothing kept yet."""
        self._memory: dict[str, torch.Tensor] = {}

    def __call__(self, parts: Sequence[Columns]) -> Columns:
        """The rows of all parts, one or more; valid until the next call."""
        plain = {name: self._cat(name, [p.plain[name] for p in parts]) for name in parts[0].plain}
        lists = {}
        for name in parts[0].lists:
            values = self._cat(f"{name} items", [p.lists[name].values for p in parts])
            lengths = torch.cat([p.lists[name].lengths for p in parts])
            lists[name] = Lists(_offsets(lengths), values)
        return Columns(plain, lists)

    def _cat(self, name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        size = sum(map(len, parts))
        kept = self._memory.get(name)
        if kept is None or len(kept) < size:
            kept = self._memory[name] = parts[0].new_empty(size, *parts[0].shape[1:])
        return torch.cat(list(parts), out=kept[:size])


def decode(table: pa.Table, schema: Schema, where: str) -> Columns:
    """The columns of `schema` as arrays.

    Args:
        table: a row group.
        schema: features and tasks to read.
        where: file and row group, for messages.

    Raises:
        DataError: null ids or items, or a behaviour's lists differ in length.
    """
    columns = {name: _one_array(table.column(name)) for name in schema.columns}
    for name in (schema.group_column, *(feature.column for feature in schema.categorical)):
        if columns[name].null_count:
            raise DataError(f"{where}, column {name!r}: null ids; write 0 for them, ingest again")
    ids = [
        _in_range(columns[feature.column].to_numpy(), schema.table(feature.table))
        for feature in schema.categorical
    ]
    ids += [bucketise(columns[feature.column], feature) for feature in schema.bucketised]
    numbers = _floats(columns, [feature.column for feature in schema.numeric], len(table))
    for i, feature in enumerate(schema.numeric):
        numbers[:, i] -= feature.mean
        numbers[:, i] /= feature.std
    labels = _floats(columns, [task.column for task in schema.tasks], len(table))
    for k, task in enumerate(schema.tasks):
        if task.kind == "watch_time":
            labels[:, k] /= task.mean_ms
    truth = _floats(columns, [task.truth_column for task in schema.tasks], len(table))
    lists: dict[str, Lists] = {}
    for sequence in schema.sequences:
        lists |= _behaviour(columns, sequence, where)
        for attribute in sequence.attributes:
            key, table = sequence_key(sequence, attribute), schema.table(attribute.table)
            if table.raw:
                found = lists[key]
                hashed = _in_range(found.values.numpy(), table)
                lists[key] = Lists(found.offsets, torch.from_numpy(hashed))
    return Columns(
        {
            "ids": torch.from_numpy(np.stack(ids, axis=1)),
            "numbers": torch.from_numpy(numbers),
            "labels": torch.from_numpy(labels),
            "truth": torch.from_numpy(truth),
            "group": torch.from_dlpack(columns[schema.group_column]),
        },
        lists,
    )


def _in_range(ids: IntArray, table: Table) -> IntArray:
    """Ids as rows of their table: raw ones hashed, but for 0, which stays the unknown."""
    return np.where(ids == 0, 0, hashed_rows(ids, table.num_embeddings)) if table.raw else ids


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
        if not torch.equal(one.offsets, other.offsets):
            raise DataError(
                f"{where}: columns {first!r} and {second!r} have lists of different lengths "
                "in a row; a behaviour's attributes must be parallel; ingest again"
            )
    if sequence.time_gap_column is not None:
        gaps = lists[sequence.name]
        buckets = torch.from_numpy(time_gap_bucket(gaps.values.numpy()))
        lists[sequence.name] = Lists(gaps.offsets, buckets)
    return {key: entry.newest(sequence.max_length) for key, entry in lists.items()}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece: a copy only if it isn't (`combine_chunks` always copies)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _lists(column: pa.ListArray, name: str, where: str) -> Lists:
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{where}, column {name!r}: null items in lists; ingest again")
    offsets = torch.from_numpy(column.offsets.to_numpy().astype(np.int64))
    assert offsets[-1] - offsets[0] == len(values), "a null list owns items"
    return Lists(offsets - offsets[0], torch.from_dlpack(values))


def _offsets(lengths: torch.Tensor) -> torch.Tensor:
    offsets: torch.Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return offsets


def _floats(
    columns: dict[str, pa.Array], names: Sequence[str | None], num_rows: int
) -> npt.NDArray[np.float32]:
    """Float columns side by side, [N, names]; NaN where null or there is no column."""
    floats = np.full((num_rows, len(names)), np.nan, np.float32)
    for i, name in enumerate(names):
        if name is not None:
            floats[:, i] = columns[name].to_numpy(zero_copy_only=False)
    return floats
