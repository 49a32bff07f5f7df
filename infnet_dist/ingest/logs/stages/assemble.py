"""Stage assemble: the rows of a partition with ids, histories, counters and labels, by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.config.log_columns import Behaviour
from infnet_dist.config.logs import LogsIngest
from infnet_dist.features.definition import Definition
from infnet_dist.features.hashing import splitmix64
from infnet_dist.features.ids import IdEncoder
from infnet_dist.features.lists import action_codes, cut, first_items
from infnet_dist.features.storage import encoders_of
from infnet_dist.ingest.convert.arrays import list_items
from infnet_dist.ingest.convert.keys import keys, nulls
from infnet_dist.ingest.encode import float_column
from infnet_dist.ingest.histories import Packing, Picked, newest_before
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.encoding.features import (
    GROUP,
    TIME,
    WEIGHT,
    id_features,
    item_features,
    weights_name,
)
from infnet_dist.ingest.logs.encoding.hashing import buckets_of
from infnet_dist.ingest.logs.negatives import splits_of
from infnet_dist.ingest.logs.splits import SPLITS, Calendar
from infnet_dist.ingest.logs.stages.deduplicate import Deduplicated
from infnet_dist.ingest.logs.stages.shuffle_files import BucketWriter, read_bucket
from infnet_dist.io.filesystem import published
from infnet_dist.schema import Schema

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
_SMALL = 2**31  # smaller ids are passed on as int32


def assemble(
    context: IngestContext,
    deduplicated: Deduplicated,
    *,
    schema: Schema,
    counts: tuple[tuple[Path, ...], ...],
    definition: Definition,
    num_parts: Mapping[str, int],
    boundary_ms: int,
    num_rows: int,
) -> tuple[Path, ...]:
    """Run the stage; the files of the rows, by partition.

    Args:
        context: settings and paths.
        deduplicated: result of stage deduplicate.
        schema: schema of the training set.
        counts: files of stage count, by group of counters.
        definition: the transforms; their key maps are in the folder of the context.
        num_parts: number of parts by split.
        boundary_ms: the state keeps all rows from this time on, and the newest events before it.
        num_rows: number of rows in all partitions.
    """
    config, num_partitions = context.config, deduplicated.num_partitions
    tasks = {
        f"{partition:05d}": AssemblePartition(
            config=config,
            schema=schema,
            partition=partition,
            num_partitions=num_partitions,
            rows=rows,
            counts=counts,
            definition=definition,
            transforms=context.transforms,
            num_parts=num_parts,
            rows_per_chunk=context.sizes.chunk,
            boundary_ms=boundary_ms,
            out=context.file("assemble", f"{partition:05d}.rows"),
            state=context.state / f"rows-{partition:05d}.parquet" if config.extendable else None,
        )
        for partition, rows in enumerate(deduplicated.files("rows"))
    }
    each = max(num_rows // num_partitions, 1)
    context.runner.run("assemble", tasks, rows=[each] * num_partitions)
    return tuple(task.out for task in tasks.values())


@dataclass(frozen=True)
class AssemblePartition:
    """The task of one partition.

    Attributes:
        schema: schema of the training set.
        rows: file of the sorted rows of the partition.
        counts: files of stage count, by group of counters.
        definition: the transforms.
        transforms: folder of their key maps.
        num_parts: number of parts by split.
        rows_per_chunk: number of rows that are made at once.
        boundary_ms: the state keeps all rows from this time on, and the newest events before it.
        out: output file with one bucket per part, split after split.
        state: file of the rows that the next ingest needs; None: not kept.
    """

    config: LogsIngest
    schema: Schema
    partition: int
    num_partitions: int
    rows: Path
    counts: tuple[tuple[Path, ...], ...]
    definition: Definition
    transforms: Path
    num_parts: Mapping[str, int]
    rows_per_chunk: int
    boundary_ms: int
    out: Path
    state: Path | None

    def run(self) -> dict[str, Any]:
        """Number of rows written."""
        config = self.config
        rows = read_bucket([self.rows], 0, 1)
        splits = splits_of(config, rows)
        encoders = encoders_of(self.definition, self.transforms)
        made = _Columns(config, self.schema, rows, encoders, self._read_counts(len(rows)))
        if self.state is not None:
            self._keep_state(rows, made)
        written = ~rows["_state"].to_numpy() & (splits < len(SPLITS))
        parts = self._parts(splits)
        with BucketWriter(self.out, made.types, sum(self.num_parts.values())) as writer:
            chosen = np.flatnonzero(written)
            for start in range(0, len(chosen), self.rows_per_chunk):
                chunk = chosen[start : start + self.rows_per_chunk]
                writer.write(made.chunk(chunk), parts[chunk])
        return {"rows": int(written.sum())}

    def _read_counts(self, num_rows: int) -> dict[str, npt.NDArray[np.float32]]:
        """Events before each row, by counter; 0 if the key of the row is null."""
        counts = {n: np.zeros(num_rows, np.float32) for n in self.config.counters}
        for files in self.counts:
            found = read_bucket(files, self.partition, self.num_partitions)
            for name in found.column_names[1:]:
                counts[name][found["_row"].to_numpy()] = found[name].to_numpy()
        return counts

    def _parts(self, splits: IntArray) -> IntArray:
        """Number of the part of each row: random, but the same in every run."""
        rows = (np.int64(self.partition) << 32) + np.arange(len(splits))
        hashes = splitmix64(rows, 1_000 + self.config.seed)
        parts, first = np.zeros(len(splits), np.int64), 0
        for split, number in self.num_parts.items():
            here = splits == SPLITS.index(split)
            parts[here] = first + buckets_of(hashes[here], number)
            first += number
        return parts

    def _keep_state(self, rows: pa.Table, made: "_Columns") -> None:
        """Write the rows from the boundary on, and the newest events before it per behaviour."""
        kept = rows[self.config.time.column].to_numpy() >= self.boundary_ms
        for name in self.config.behaviours:
            kept |= made.newest_events(name, self.boundary_ms)
        assert self.state is not None
        with published(self.state) as path:
            columns = self.config.columns
            # Rows of the state aren't written again: their vectors aren't needed.
            small = [name for name in columns if name not in self.config.vectors]
            table = rows.select(small).filter(pa.array(kept))
            for name in self.config.vectors:
                found = rows.schema.field(name)
                table = table.append_column(found, pa.nulls(len(table), found.type))
            pq.write_table(table.select(columns), path, compression="zstd")


class _Columns:
    """Makes the columns of the training set for chunks of the rows of a partition."""

    def __init__(
        self,
        config: LogsIngest,
        schema: Schema,
        rows: pa.Table,
        encoders: Mapping[str, IdEncoder],
        counts: Mapping[str, npt.NDArray[np.float32]],
    ) -> None:
        self._config, self._schema, self._rows = config, schema, rows
        self._encoders, self._counts = encoders, counts
        self._times = rows[config.time.column].to_numpy()
        self._until = Calendar.of(config).known_until(self._times)
        user_keys = rows["_user"].to_numpy()
        starts = np.diff(user_keys, prepend=user_keys[:1]) != 0
        self._users = np.cumsum(starts)  # numbers from 0 on, in order
        self._packed = Packing(self._times)
        self._ids = {
            feature.name: self._encoded(feature.column, feature.table, feature.seed)
            for column, table in config.ids.items()
            for feature in id_features(config, column, table)
        }
        self._events = {name: self._event_rows(b) for name, b in config.behaviours.items()}
        self._event_keys = {
            name: self._packed(self._users[events], self._times[events])
            for name, events in self._events.items()
        }
        self._actions = {n: self._action_codes(b) for n, b in config.behaviours.items()}

    @property
    def types(self) -> pa.Schema:
        """Columns and types of a chunk."""
        return self.chunk(np.zeros(0, np.int64)).schema

    def chunk(self, chosen: IntArray) -> pa.Table:
        """The columns of these rows; `chosen` is ascending."""
        take = pa.array(chosen)
        columns: dict[str, Any] = {name: pa.array(ids[chosen]) for name, ids in self._ids.items()}
        for name in self._config.lists:
            columns |= self._list(name, take)
        for name in self._config.vectors:
            columns[name] = self._rows[name].take(take).combine_chunks()
        for feature in self._schema.dense:
            columns[feature.name] = self._dense(feature.name, chosen)
        for name, behaviour in self._config.behaviours.items():
            columns |= self._history(name, behaviour, chosen)
        for task in self._schema.tasks:
            source = self._config.tasks.get(task.name, self._config.watch_time)
            columns[task.column] = self._rows[source].take(take).combine_chunks()
        if self._config.sample_weight is not None:
            weights = self._rows[self._config.sample_weight].take(take).combine_chunks()
            columns[WEIGHT] = weights.cast(pa.float32())
        columns[GROUP] = self._rows["_user"].take(take).combine_chunks()
        columns[TIME] = pa.array(self._times[chosen])
        return pa.table(columns)

    def newest_events(self, name: str, before_ms: int) -> BoolArray:
        """Mask of the rows that are among the newest events of their user before a time."""
        behaviour = self._config.behaviours[name]
        events = self._events[name]
        events = events[self._times[events] < before_ms]
        users = self._users[events]
        later = np.searchsorted(users, users, side="right") - np.arange(len(users)) - 1
        newest = np.zeros(len(self._rows), bool)
        newest[events[later < behaviour.length]] = True
        return newest

    def _encoded(self, column: str, table: str, seed: int) -> npt.NDArray:
        values = self._rows[column].combine_chunks()
        return self._narrow(self._encoders[table](keys(values), nulls(values), seed), table)

    def _narrow(self, ids: IntArray, table: str) -> npt.NDArray:
        """As int32 if all ids of the table fit: half the bytes to pass on."""
        found = self._schema.table(table)
        return ids if found.raw or found.num_embeddings > _SMALL else ids.astype(np.int32)

    def _event_rows(self, behaviour: Behaviour) -> IntArray:
        if behaviour.where is None:
            return np.arange(len(self._rows))
        return np.flatnonzero(self._flag(behaviour.where))

    def _flag(self, column: str) -> BoolArray:
        return pc.fill_null(self._rows[column], 0).to_numpy() == 1

    def _dense(self, name: str, chosen: IntArray) -> pa.Array:
        if name in self._counts:
            return pa.array(self._counts[name][chosen])
        values = self._rows[name].take(pa.array(chosen))
        feature = next(f for f in self._schema.dense if f.name == name)
        if feature.boundaries is None:
            values = pc.fill_null(values, feature.mean)
        return float_column(pc.fill_null(values, np.nan).to_numpy())

    def _list(self, name: str, take: pa.Array) -> dict[str, pa.Array]:
        column = self._config.lists[name]
        items, offsets = self._items(name, column.max_length, take)
        item_keys, null = keys(items), nulls(items)
        made = {}
        for feature in id_features(self._config, name, column.table):
            ids = self._encoders[column.table](item_keys, null, feature.seed)
            ids = pa.array(self._narrow(ids, column.table))
            made[feature.name] = pa.ListArray.from_arrays(offsets, ids)
        if column.weights is not None:
            weights, offsets = self._items(column.weights, column.max_length, take)
            made[weights_name(name)] = pa.ListArray.from_arrays(offsets, weights)
        return made

    def _items(self, name: str, max_length: int, take: pa.Array) -> tuple[pa.Array, pa.Array]:
        """The first items of the lists of a column, and their offsets; none for null."""
        items, lengths = list_items(self._rows[name].combine_chunks().take(take))
        kept = first_items(lengths, max_length)
        if not kept.all():
            items, lengths = items.filter(pa.array(kept)), cut(lengths, max_length)
        return items, _offsets(np.concatenate([[0], np.cumsum(lengths)]))

    def _history(self, name: str, behaviour: Behaviour, chosen: IntArray) -> dict[str, pa.Array]:
        events = self._events[name]
        picked = self._picked(name, behaviour.length, chosen)
        source, offsets = events[picked.events], _offsets(picked.offsets)
        made = {}
        for feature in item_features(self._config, behaviour):
            items = pa.array(self._ids[feature.name][source])
            made[f"{name}_{feature.name}"] = pa.ListArray.from_arrays(offsets, items)
        if behaviour.actions:
            items = pa.array(self._actions[name][source])
            made[f"{name}_actions"] = pa.ListArray.from_arrays(offsets, items)
        if behaviour.time_gaps:
            gaps = pa.array(picked.gap_s)
            made[f"{name}_gap_s"] = pa.ListArray.from_arrays(offsets, gaps)
        return made

    def _picked(self, name: str, length: int, chosen: IntArray) -> Picked:
        users, keys = self._users[chosen], self._event_keys[name]
        return newest_before(
            keys,
            self._times[self._events[name]],
            np.searchsorted(keys, self._packed(users, np.zeros_like(users))),
            self._packed(users, self._until[chosen]),
            self._times[chosen],
            length,
        )

    def _action_codes(self, behaviour: Behaviour) -> npt.NDArray[np.int32]:
        """The actions of each row."""
        return action_codes([self._flag(name) for name in behaviour.actions], len(self._rows))


def _offsets(offsets: IntArray) -> pa.Array:
    return pa.array(offsets.astype(np.int32))
