"""Values -> ids: by a vocabulary that keeps existing ids as it grows, by hash, or unchanged.

A vocabulary is a Parquet file sorted by value, with the columns `value`, `id` (0: too rare, or the
table is full), `count` (in train) and `pending` (in valid and test, added to `count` when their
days belong to train). Each ingest writes a new version; later versions keep earlier ids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.config.log_columns import IdTable
from infnet_dist.data.hashing import hashed_rows
from infnet_dist.errors import DataError
from infnet_dist.ingest.convert.arrays import mask
from infnet_dist.ingest.convert.ids import to_join_keys
from infnet_dist.ingest.logs.encoding.hashing import keys
from infnet_dist.ingest.logs.stages.shuffle_files import read_bucket
from infnet_dist.io.filesystem import published

IntArray = npt.NDArray[np.int64]
_COMPACT = 4  # maximum entries of a lookup array per value: 4 bytes each, a value has 16


@dataclass(frozen=True)
class MergeCounts:
    """The task of one table with a vocabulary: sums the counts of all partitions, assigns new ids.

    Attributes:
        number: number of the table, of `num_tables`: its bucket in the counts.
        text: whether values are texts.
        inferred: columns of the table whose type isn't in the config.
        counts: files of stage deduplicate.
        previous: the previous version; None if there is none.
        pending_is_train: whether earlier rows of valid and test belong to train now.
        out: file of the new version.
        compiled: file that encoders map into memory.
    """

    table: IdTable
    number: int
    num_tables: int
    text: bool
    inferred: tuple[str, ...]
    counts: tuple[Path, ...]
    previous: Path | None
    pending_is_train: bool
    out: Path
    compiled: Path

    def run(self) -> dict[str, Any]:
        """Numbers of values and of ids.

        Raises:
            DataError: two texts may be one integer, and the config doesn't declare the type.
        """
        found = read_bucket(self.counts, self.number, self.num_tables)
        found = found.select(["text" if self.text else "value", "count", "pending"])
        found = found.rename_columns(["value", "count", "pending"])
        found = found.append_column("id", pa.array(np.zeros(len(found), np.int64)))
        merged = _summed(found, self._previous(found.schema))
        if self.text and self.inferred:
            _check_texts(merged["value"].combine_chunks(), self.inferred)
        merged = self._with_new_ids(merged)
        with published(self.out) as path:
            pq.write_table(merged, path, compression="zstd")
        known = merged.filter(pc.greater(merged["id"], 0))
        _compile(known, self.compiled)
        return {"values": len(merged), "ids": len(known)}

    def _previous(self, schema: pa.Schema) -> pa.Table:
        if self.previous is None:
            return schema.empty_table()
        table = pq.read_table(self.previous).select(schema.names).cast(schema)
        if not self.pending_is_train:
            return table
        zeros = pa.array(np.zeros(len(table), np.int64))
        count = pc.add(table["count"], table["pending"])
        columns = {"value": table["value"], "count": count, "pending": zeros, "id": table["id"]}
        return pa.table(columns, schema=schema)

    def _with_new_ids(self, merged: pa.Table) -> pa.Table:
        """Assign ids to new values: by descending count, then ascending value."""
        ids, counts = (merged[name].to_numpy().copy() for name in ("id", "count"))
        wanting = np.flatnonzero((ids == 0) & (counts >= self.table.min_count))
        wanting = wanting[np.argsort(-counts[wanting], kind="stable")]
        taken = int(ids.max(initial=0))
        if self.table.num_embeddings is not None:
            wanting = wanting[: max(self.table.num_embeddings - 1 - taken, 0)]
        ids[wanting] = taken + 1 + np.arange(len(wanting))
        place = merged.schema.get_field_index("id")
        return merged.set_column(place, "id", pa.array(ids))


def _check_texts(values: pa.Array, columns: tuple[str, ...]) -> None:
    """Raise DataError if earlier ingests and this one wrote an id in two ways: 1 and 1.0."""
    integers = to_join_keys(values, text=True)
    other = pc.not_equal(integers, values)
    twice = mask(pc.and_(other, pc.is_in(integers, values)))
    if twice.any():
        row = int(twice.argmax())
        raise DataError(
            f"columns {', '.join(map(repr, columns))} contain the texts "
            f"{values[row].as_py()!r} and {integers[row].as_py()!r}, which may be one id; write "
            "new logs like the earlier ones, or make a new set with "
            f"ingest.checks.{columns[0]}.type: int to read both as integers, text to keep them "
            "distinct"
        )


def _summed(found: pa.Table, previous: pa.Table) -> pa.Table:
    """One row per value with its sums, sorted by value."""
    wanted = [("count", "sum"), ("pending", "sum"), ("id", "max")]
    merged = pa.concat_tables([found, previous]).group_by("value").aggregate(wanted)
    merged = merged.select(["value", "id_max", "count_sum", "pending_sum"])
    return merged.rename_columns(["value", "id", "count", "pending"]).sort_by("value")


class Encoder(Protocol):
    """Values of a table's columns -> ids."""

    def __call__(self, values: pa.Array, seed: int = 0) -> IntArray:
        """Ids of values, int64 [n]; 0 for null or unknown. `seed` selects the hash function."""
        ...


def _compile(known: pa.Table, path: Path) -> None:
    """Write the keys of all values with an id, ascending, and the ids."""
    found = keys(known["value"].combine_chunks())
    order = np.argsort(found)
    assert np.all(np.diff(found[order]) != 0), "two texts of a vocabulary have the same 64-bit hash"
    table = pa.table({"key": found[order], "id": known["id"].to_numpy()[order]})
    with published(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


class VocabularyEncoder:
    """Ids of a vocabulary, from a `compiled` file."""

    def __init__(self, path: Path) -> None:
        batches = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        self._keys, self._ids = (batches[name].to_numpy() for name in ("key", "id"))
        self._lookup = self._lookup_array()

    def __call__(self, values: pa.Array, seed: int = 0) -> IntArray:
        """As `Encoder`; the seed has no effect."""
        wanted = keys(values)
        if self._lookup is not None:
            inside = (wanted >= 0) & (wanted < len(self._lookup))
            ids = self._lookup[np.where(inside, wanted, 0)].astype(np.int64)
            ids[~inside] = 0
        else:
            ids = self._searched(wanted)
        if values.null_count:
            ids[pc.is_null(values).to_numpy(zero_copy_only=False)] = 0
        return ids

    def _lookup_array(self) -> npt.NDArray[np.int32] | None:
        """Ids indexed by key, if this array isn't larger than the vocabulary."""
        if not len(self._keys) or self._keys[0] < 0:
            return None
        if self._keys[-1] > _COMPACT * len(self._keys) + (1 << 16) or len(self._keys) >= 2**31:
            return None
        lookup = np.zeros(int(self._keys[-1]) + 1, np.int32)
        lookup[self._keys] = self._ids
        return lookup

    def _searched(self, wanted: IntArray) -> IntArray:
        """Binary search of the distinct keys in ascending order."""
        if not len(self._keys):
            return np.zeros(len(wanted), np.int64)
        distinct, back = np.unique(wanted, return_inverse=True)
        place = np.minimum(np.searchsorted(self._keys, distinct), len(self._keys) - 1)
        return np.where(self._keys[place] == distinct, self._ids[place], 0)[back]


@dataclass(frozen=True)
class HashEncoder:
    """Hashes values to rows 1 to num_embeddings - 1."""

    num_embeddings: int

    def __call__(self, values: pa.Array, seed: int = 0) -> IntArray:
        """As `Encoder`."""
        ids = hashed_rows(keys(values), self.num_embeddings, seed)
        ids[pc.is_null(values).to_numpy(zero_copy_only=False)] = 0
        return ids


@dataclass(frozen=True)
class RawEncoder:
    """Keeps integers, hashes texts to 64 bits; the reader hashes both to rows."""

    def __call__(self, values: pa.Array, seed: int = 0) -> IntArray:
        """As `Encoder`; the seed has no effect."""
        ids = keys(values)
        null = pc.is_null(values).to_numpy(zero_copy_only=False)
        return np.where(null, 0, ids)
