"""Arrow table of a row group -> checked arrays by column.

Lists aren't copied: they are views of Arrow's memory. Nothing here loops over rows.
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
    """N lists of ids: the list of row i is values[starts[i]:starts[i] + lengths[i]].

    Attributes:
        starts: int32 [N].
        lengths: int32 [N].
        values: int64 [items]; some items may be in no list.
    """

    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    values: IntArray

    def newest(self, count: int) -> "Lists":
        """The first `count` items of each list: histories are newest first."""
        return Lists(self.starts, self.lengths.clip(max=count), self.values)


@dataclass(frozen=True)
class Columns:
    """N rows of a training set, decoded.

    Attributes:
        scalars: columns of N values by kind: `ids` in the order of `Schema.fields`; `dense`,
            standardised; `labels`, NaN if unknown, watch times divided by the training window's
            mean; `truth`, NaN if unknown; `group`.
        lists: ids of a sequence attribute, at most `max_length` per row, by its key in the
            KeyedJaggedTensor; buckets of a behaviour's time gaps, if it has any, by its name.
    """

    scalars: dict[str, list[Array]]
    lists: dict[str, Lists]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.scalars["group"][0])


def blank_rows(schema: Schema, num_rows: int) -> Columns:
    """Rows without information: ids 0, empty lists, unknown labels."""
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
        DataError: a column is missing or of another type; the schema doesn't allow an id, item,
            label, time gap or dense value; or a behaviour's lists differ in length. Names the
            column and an offending value.
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
    """Rows of the table: ids as they are, or raw ids hashed; 0 stays 0, unknown."""
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
    """Lists of a behaviour's attributes and time gaps, checked to be parallel."""
    found = {sequence_key(sequence, a): a.column for a in sequence.attributes}
    if sequence.time_gap_column is not None:
        found[sequence.name] = sequence.time_gap_column
    lists = {key: _lists(columns[column], column, where) for key, column in found.items()}
    for (first, one), (second, other) in pairwise(zip(found.values(), lists.values(), strict=True)):
        if not np.array_equal(one.lengths, other.lengths):
            raise DataError(
                f"{where}: columns {first!r} and {second!r} have lists of different lengths "
                "in a row, expected parallel lists; ingest again"
            )
    if sequence.time_gap_column is not None:
        gaps = lists[sequence.name]
        lists[sequence.name] = replace(gaps, values=time_gap_bucket(gaps.values))
    return {key: entry.newest(sequence.max_length) for key, entry in lists.items()}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, copied only if it has several (`combine_chunks` always copies)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _lists(column: pa.ListArray, name: str, where: str) -> Lists:
    values = column.flatten()
    if values.nbytes > np.iinfo(np.int32).max:  # the offset of a view is an int32
        raise DataError(
            f"{where}, column {name!r}: {len(values)} items; ingest again with smaller row groups"
        )
    offsets = column.offsets.to_numpy()
    if offsets[-1] - offsets[0] != len(values):
        raise DataError(f"{where}, column {name!r}: a null list has items; ingest again")
    return Lists(offsets[:-1] - offsets[0], np.diff(offsets), values.to_numpy())


def _floats(column: pa.Array) -> FloatArray:
    """float32 [N]; NaN for null."""
    return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
