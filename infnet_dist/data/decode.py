"""Arrow table of a row group -> checked arrays by column.

Lists and vectors aren't copied: they are views of Arrow's memory. Nothing here loops over rows.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.data.checks.values import check_types, check_values
from infnet_dist.errors import DataError
from infnet_dist.features.hashing import cross_ids, known_ids, raw_rows
from infnet_dist.features.lists import cut
from infnet_dist.features.numbers import bucketise, standardise, time_gap_buckets
from infnet_dist.schema import (
    BagFeature,
    Schema,
    SequenceFeature,
    Table,
    VectorFeature,
    sequence_key,
)

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """N lists: the list of row i is values[starts[i]:starts[i] + lengths[i]].

    Attributes:
        starts: int32 [N].
        lengths: int32 [N].
        values: int64 ids or float32 [items]; some items may be in no list.
    """

    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    values: Array

    def first(self, count: int) -> "Lists":
        """The first `count` items of each list; of a history, the newest."""
        return Lists(self.starts, cut(self.lengths, count), self.values)


@dataclass(frozen=True)
class Columns:
    """N rows of a training set, decoded.

    Attributes:
        scalars: columns of N values by kind: `ids` in the order of `Schema.fields`; `dense`,
            standardised; `labels`, NaN if unknown, watch times divided by the training window's
            mean; `truth`, NaN if unknown; `group`; `weights` of the rows, if the schema has any.
        lists: ids of a bag or a sequence attribute, at most `max_length` per row, by its key in the
            KeyedJaggedTensor; weights of a bag's ids, parallel to them, by `weights_key`; buckets
            of a behaviour's time gaps, if it has any, by its name; the floats of a vector, none
            where it is null, by its name.
    """

    scalars: dict[str, list[Array]]
    lists: dict[str, Lists]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.scalars["group"][0])


def weights_key(bag: BagFeature) -> str:
    """Key of the weights of a bag in `Columns.lists`."""
    return f"{bag.name}.weights"


def blank_rows(schema: Schema, num_rows: int) -> Columns:
    """Rows without information: ids 0, empty lists, null vectors, unknown labels, weight 0."""
    ids = [np.zeros(num_rows, np.int64) for _ in schema.fields]
    nothing = np.full(num_rows, np.nan, np.float32)
    counts = np.zeros(num_rows, np.int32)
    keys = [bag.name for bag in schema.bags]
    keys += [sequence_key(s, a) for s in schema.sequences for a in s.attributes]
    keys += [s.name for s in schema.sequences if s.time_gap_column is not None]
    floats = [weights_key(bag) for bag in schema.weighted_bags]
    floats += [vector.name for vector in schema.vectors]
    return Columns(
        {
            "ids": ids,
            "dense": [np.zeros(num_rows, np.float32) for _ in schema.standardised],
            "labels": [nothing for _ in schema.tasks],
            "truth": [nothing for _ in schema.tasks],
            "group": [np.zeros(num_rows, np.int64)],
            "weights": [np.zeros(num_rows, np.float32)] if schema.weight_column else [],
        },
        {key: Lists(counts, counts, np.empty(0, np.int64)) for key in keys}
        | {key: Lists(counts, counts, np.empty(0, np.float32)) for key in floats},
    )


def decode(table: pa.Table, schema: Schema, where: str) -> Columns:
    """The columns of `schema` as arrays.

    Args:
        table: a row group.
        schema: features and tasks to read.
        where: file and row group, for messages.

    Raises:
        DataError: a column is missing or of another type; the schema doesn't allow an id, item,
            label, time gap, dense value, weight or vector; or parallel lists differ in length.
            Names the column and an offending value.
    """
    check_types(table.schema, schema, where)
    columns = {name: _one_array(table.column(name)) for name in schema.columns}
    check_values(columns, schema, where)
    labels = [_floats(columns[task.column]) for task in schema.tasks]
    unknown = np.full(len(table), np.nan, np.float32)
    truth = [
        _floats(columns[task.truth_column]) if task.truth_column else unknown
        for task in schema.tasks
    ]
    scalars = {
        "ids": _ids(columns, schema),
        "dense": [
            standardise(_floats(columns[f.column]), f.mean, f.std) for f in schema.standardised
        ],
        "labels": [
            label / np.float32(task.mean_ms) if task.kind == "watch_time" else label
            for label, task in zip(labels, schema.tasks, strict=True)
        ],
        "truth": truth,
        "group": [columns[schema.group_column].to_numpy()],
        "weights": [_floats(columns[schema.weight_column])] if schema.weight_column else [],
    }
    lists: dict[str, Lists] = {}
    for bag in schema.bags:
        lists |= _bag(columns, bag, schema.table(bag.table), where)
    for sequence in schema.sequences:
        lists |= _behaviour(columns, sequence, where)
        for attribute in sequence.attributes:
            key, ids_table = sequence_key(sequence, attribute), schema.table(attribute.table)
            if ids_table.raw:
                lists[key] = replace(lists[key], values=_in_range(lists[key].values, ids_table))
    for vector in schema.vectors:
        lists[vector.name] = _vectors(columns[vector.column], vector, where)
    return Columns(scalars, lists)


def _ids(columns: dict[str, pa.Array], schema: Schema) -> list[Array]:
    """Ids of each field: categorical, bucketised, crosses."""
    given = {f.name: columns[f.column].to_numpy() for f in schema.categorical}
    given |= {
        f.name: bucketise(_floats(columns[f.column]), f.boundaries or ()) for f in schema.bucketised
    }
    ids = [_in_range(given[f.name], schema.table(f.table)) for f in schema.categorical]
    ids += [given[f.name] for f in schema.bucketised]
    given |= {f.name: _known(given[f.name], schema.table(f.table)) for f in schema.categorical}
    return ids + [
        cross_ids([given[n] for n in cross.features], schema.table(cross.table).num_embeddings)
        for cross in schema.crosses
    ]


def _in_range(ids: IntArray, table: Table) -> IntArray:
    """Rows of the table: ids as they are, or raw ids hashed; 0 stays 0, unknown."""
    return raw_rows(ids, table.num_embeddings) if table.raw else ids


def _known(ids: IntArray, table: Table) -> IntArray:
    """The ids, with 0 for those that a trained model doesn't know; so is a cross with them."""
    return ids if table.num_ids is None else known_ids(ids, table.num_embeddings)


def _bag(
    columns: dict[str, pa.Array], bag: BagFeature, table: Table, where: str
) -> dict[str, Lists]:
    """Ids of a bag, hashed if its table is raw, and their weights, checked to be parallel."""
    ids = _lists(columns[bag.column], bag.column, where)
    found = {bag.name: replace(ids, values=_in_range(ids.values, table))}
    if bag.weight_column is not None:
        found[weights_key(bag)] = _lists(columns[bag.weight_column], bag.weight_column, where)
        names = (bag.column, bag.weight_column)
        _check_parallel(ids, found[weights_key(bag)], names, where)
    return {key: lists.first(bag.max_length) for key, lists in found.items()}


def _vectors(column: pa.FixedSizeListArray, vector: VectorFeature, where: str) -> Lists:
    """The vector of each row, as a list; empty where it is null."""
    values = column.values  # of all vectors, whatever the offset of the column
    _check_size(values, vector.column, where)
    buffer = values.buffers()[1]  # `to_numpy` would copy where a vector is null
    floats = (
        np.empty(0, np.float32)
        if buffer is None
        else np.frombuffer(buffer, np.float32, len(values), values.offset * 4)
    )
    starts = (np.arange(len(column), dtype=np.int32) + np.int32(column.offset)) * vector.dim
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return Lists(starts, np.where(present, np.int32(vector.dim), np.int32(0)), floats)


def _behaviour(
    columns: dict[str, pa.Array], sequence: SequenceFeature, where: str
) -> dict[str, Lists]:
    """Lists of a behaviour's attributes and time gaps, checked to be parallel."""
    found = {sequence_key(sequence, a): a.column for a in sequence.attributes}
    if sequence.time_gap_column is not None:
        found[sequence.name] = sequence.time_gap_column
    lists = {key: _lists(columns[column], column, where) for key, column in found.items()}
    for (first, one), (second, other) in pairwise(zip(found.values(), lists.values(), strict=True)):
        _check_parallel(one, other, (first, second), where)
    if sequence.time_gap_column is not None:
        gaps = lists[sequence.name]
        lists[sequence.name] = replace(gaps, values=time_gap_buckets(gaps.values))
    return {key: entry.first(sequence.max_length) for key, entry in lists.items()}


def _check_parallel(one: Lists, other: Lists, names: tuple[str, str], where: str) -> None:
    if not np.array_equal(one.lengths, other.lengths):
        row = int(np.flatnonzero(one.lengths != other.lengths)[0])
        raise DataError(
            f"{where}: columns {names[0]!r} and {names[1]!r} have lists of different lengths in a "
            f"row ({one.lengths[row]} and {other.lengths[row]} items in row {row}), expected "
            "parallel lists; ingest again"
        )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, copied only if it has several (`combine_chunks` always copies)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _lists(column: pa.ListArray, name: str, where: str) -> Lists:
    values = column.flatten()
    _check_size(values, name, where)
    offsets = column.offsets.to_numpy()
    if offsets[-1] - offsets[0] != len(values):
        raise DataError(f"{where}, column {name!r}: a null list has items; ingest again")
    return Lists(offsets[:-1] - offsets[0], np.diff(offsets), values.to_numpy())


def _check_size(values: pa.Array, name: str, where: str) -> None:
    if values.nbytes > np.iinfo(np.int32).max:  # the offset of a view is an int32
        raise DataError(
            f"{where}, column {name!r}: {len(values)} items; ingest again with smaller row groups"
        )


def _floats(column: pa.Array) -> FloatArray:
    """float32 [N]; NaN for null."""
    return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
