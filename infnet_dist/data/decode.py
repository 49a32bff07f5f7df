"""A row group in Arrow's memory -> its columns as arrays, checked; lists stay where they are.

Nothing here loops over rows.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.data.checks.values import check_types, check_values
from infnet_dist.data.hashing import hashed_rows
from infnet_dist.errors import DataError
from infnet_dist.schema import DenseFeature, Schema, SequenceFeature, Table, sequence_key

NUM_TIME_GAP_BUCKETS = 32

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """N lists of ids: row i owns values[starts[i]:starts[i] + lengths[i]].

    Attributes:
        starts: int32 [N].
        lengths: int32 [N].
        values: int64 [items], of which there may be more than the lists own.
    """

    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    values: IntArray

    def newest(self, count: int) -> "Lists":
        """The first `count` items of each list: histories stand newest first."""
        return Lists(self.starts, self.lengths.clip(max=count), self.values)


@dataclass(frozen=True)
class Columns:
    """N rows of a training set, decoded.

    Attributes:
        scalars: the columns, N values each, of `ids` in `Schema.fields` order; of `dense`,
            standardised; of `labels`, NaN where nobody knows, a watch time over the training
            window's mean; of `truth`, NaN where unknown; and of `group`.
        lists: by key of the KeyedJaggedTensor the ids of a sequence attribute, at most `max_length`
            a row; by name of the behaviour the buckets of its time gaps, if it has any.
    """

    scalars: dict[str, list[Array]]
    lists: dict[str, Lists]

    def __len__(self) -> int:
        """Rows."""
        return len(self.scalars["group"][0])


def unknown_rows(schema: Schema, num_rows: int) -> Columns:
    """Rows that weigh nothing: ids 0, empty lists, labels that nobody knows."""
    ids = [np.zeros(num_rows, np.int64) for _ in schema.fields]
    nothing = np.full(num_rows, np.nan, np.float32)
    counts = np.zeros(num_rows, np.int32)
    keys = [sequence_key(s, a) for s in schema.sequences for a in s.attributes]
    keys += [s.name for s in schema.sequences if s.time_gap_column is not None]
    return Columns(
        {
            "ids": ids,
            "dense": [np.zeros(num_rows, np.float32) for _ in schema.standardised],
            "labels": [nothing for _ in schema.tasks],
            "truth": [nothing for _ in schema.tasks],
            "group": [np.zeros(num_rows, np.int64)],
        },
        {key: Lists(counts, counts, np.empty(0, np.int64)) for key in keys},
    )


def decode(table: pa.Table, schema: Schema, where: str) -> Columns:
    """The columns of `schema` as arrays.

    Args:
        table: a row group.
        schema: features and tasks to read.
        where: file and row group, for messages.

    Raises:
        DataError: a column is missing or of another type; an id, item, label, time gap or number
            that the schema doesn't allow; or a behaviour's lists differ in length. Names the column
            and an offending value.
    """
    check_types(table.schema, schema, where)
    columns = {name: _one_array(table.column(name)) for name in schema.columns}
    check_values(columns, schema, where)
    ids: list[Array] = [
        _in_range(columns[feature.column].to_numpy(), schema.table(feature.table))
        for feature in schema.categorical
    ]
    ids += [bucketise(columns[feature.column], feature) for feature in schema.bucketised]
    centred = [_floats(columns[f.column]) - np.float32(f.mean) for f in schema.standardised]
    labels = [_floats(columns[task.column]) for task in schema.tasks]
    unknown = np.full(len(table), np.nan, np.float32)
    truth = [
        _floats(columns[task.truth_column]) if task.truth_column else unknown
        for task in schema.tasks
    ]
    lists: dict[str, Lists] = {}
    for sequence in schema.sequences:
        lists |= _behaviour(columns, sequence, where)
        for attribute in sequence.attributes:
            key, ids_table = sequence_key(sequence, attribute), schema.table(attribute.table)
            if ids_table.raw:
                lists[key] = replace(lists[key], values=_in_range(lists[key].values, ids_table))
    scalars = {
        "ids": ids,
        "dense": [x / np.float32(f.std) for x, f in zip(centred, schema.standardised, strict=True)],
        "labels": [
            label / np.float32(task.mean_ms) if task.kind == "watch_time" else label
            for label, task in zip(labels, schema.tasks, strict=True)
        ],
        "truth": truth,
        "group": [columns[schema.group_column].to_numpy()],
    }
    return Columns(scalars, lists)


def _in_range(ids: IntArray, table: Table) -> IntArray:
    """Ids as rows of their table: raw ones hashed, but for 0, which stays the unknown."""
    return np.where(ids == 0, 0, hashed_rows(ids, table.num_embeddings)) if table.raw else ids


def bucketise(column: pa.Array, feature: DenseFeature) -> IntArray:
    """Ids of a dense column: 0 for null, 1 + i where boundaries[i - 1] <= value < boundaries[i]."""
    assert feature.boundaries is not None
    values = column.to_numpy(zero_copy_only=False)
    buckets = 1 + np.searchsorted(np.asarray(feature.boundaries), values, side="right")
    return np.where(np.isnan(values), 0, buckets).astype(np.int64)


def time_gap_bucket(gap_s: IntArray) -> IntArray:
    """Powers of two of a gap in seconds: 1 for 1 s, 2 for 2-3 s, 3 for 4-7 s, ...; at most 31."""
    buckets = 1 + np.log2(np.maximum(gap_s, 1)).astype(np.int64)
    return np.minimum(buckets, NUM_TIME_GAP_BUCKETS - 1)


def _behaviour(
    columns: dict[str, pa.Array], sequence: SequenceFeature, where: str
) -> dict[str, Lists]:
    """A behaviour's attributes and time gaps, whose lists must be parallel."""
    found = {sequence_key(sequence, a): a.column for a in sequence.attributes}
    if sequence.time_gap_column is not None:
        found[sequence.name] = sequence.time_gap_column
    lists = {key: _lists(columns[column], column, where) for key, column in found.items()}
    for (first, one), (second, other) in pairwise(zip(found.values(), lists.values(), strict=True)):
        if not np.array_equal(one.lengths, other.lengths):
            raise DataError(
                f"{where}: columns {first!r} and {second!r} have lists of different lengths "
                "in a row; a behaviour's attributes must be parallel; ingest again"
            )
    if sequence.time_gap_column is not None:
        gaps = lists[sequence.name]
        lists[sequence.name] = replace(gaps, values=time_gap_bucket(gaps.values))
    return {key: entry.newest(sequence.max_length) for key, entry in lists.items()}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece: a copy only if it isn't (`combine_chunks` always copies)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _lists(column: pa.ListArray, name: str, where: str) -> Lists:
    values = column.flatten()
    if values.nbytes > np.iinfo(np.int32).max:  # a view's offset is an int32
        raise DataError(
            f"{where}, column {name!r}: {len(values)} items; ingest again with smaller row groups"
        )
    offsets = column.offsets.to_numpy()
    if offsets[-1] - offsets[0] != len(values):
        raise DataError(f"{where}, column {name!r}: a null list has items; ingest again")
    return Lists(offsets[:-1] - offsets[0], np.diff(offsets), values.to_numpy())


def _floats(column: pa.Array) -> FloatArray:
    """float32 [N]; NaN where null."""
    return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
