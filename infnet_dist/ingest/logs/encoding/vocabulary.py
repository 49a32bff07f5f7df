"""Vocabularies that keep existing ids as they grow.

A vocabulary is a Parquet file sorted by value, with the columns `value`, `id` (0: too rare, or the
table is full), `count` (in train) and `pending` (in valid and test, added to `count` when their
days belong to train). Each ingest writes a new version; later versions keep earlier ids. Encoders,
here and in serving, read its key map (`infnet_dist.features.ids`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist.config.log_columns import IdTable
from infnet_dist.errors import DataError
from infnet_dist.features.ids import KeyMap
from infnet_dist.features.storage import save_key_map
from infnet_dist.ingest.convert.arrays import mask
from infnet_dist.ingest.convert.ids import to_join_keys
from infnet_dist.ingest.convert.keys import keys
from infnet_dist.ingest.logs.stages.shuffle_files import read_bucket
from infnet_dist.io.filesystem import published

IntArray = npt.NDArray[np.int64]


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
        transforms: folder of the key map.
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
    transforms: Path

    def run(self) -> dict[str, Any]:
        """Number of ids, and the files of the key map.

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
        key_map = KeyMap.of(keys(known["value"].combine_chunks()), known["id"].to_numpy())
        files = save_key_map(self.transforms, self.number, key_map)
        return {"ids": len(known), "key_map": asdict(files)}

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
