"""Parquet parts of a training set: writing them and summarising them for the manifest."""

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from infnet_dist.data.checks.fingerprint import fingerprint
from infnet_dist.data.manifest import Part, Split, arrow_type, same_type
from infnet_dist.schema import Schema

ROWS_HASH = "infnet_dist.rows_sha256"  # in the footer
NO_TIME = (0, 0)  # time range of rows whose times are unknown


class PartSummary(BaseModel):
    """One part: time range (epoch ms, inclusive), sums and numbers of known labels."""

    model_config = ConfigDict(frozen=True)

    part: Part
    time_range_ms: tuple[int, int]
    label_sums: dict[str, float]
    labels: dict[str, int]


class PartWriter:
    """Writes a part: zstd; int64 delta-packed, vectors by byte streams, others by dictionary.

    Tables must be cast to the schema of the writer: its int64 columns and lists that aren't
    `nullable` have no nulls, so readers needn't check for them, which takes 0.8 of the time.

    Delta-packed ids decode in 0.4 to 1.2 of the time of Parquet's default (dictionaries, or plain
    values if there are many) and take 0.7 to 1.4 of its bytes: benchmarks/encodings.py. Byte-stream
    split is smaller still, but older readers don't support it for integers. For vectors it takes
    0.7 of the time and 0.8 of the bytes of a dictionary (random ones; as many if they repeat).

    Pages have checksums, and the footer contains the hash of all bytes before it, so the
    fingerprint of a part (`data/checks/fingerprint.py`) depends on its rows, not only on their
    statistics.

    Args:
        path: path of the part.
        columns: names and types.
        nullable: int64 columns that may contain nulls.

    Attributes:
        schema: schema of the tables to write.
    """

    def __init__(self, path: Path, columns: pa.Schema, *, nullable: Collection[str] = ()) -> None:
        """Open the file."""
        self.schema = pa.schema(
            [field if field.name in nullable else _full(field) for field in columns]
        )
        encodings = {_leaf(field): _encoding(field) for field in self.schema}
        self._file = _HashedFile(path)
        self._writer = pq.ParquetWriter(
            self._file,
            self.schema,
            compression="zstd",
            use_dictionary=[leaf for leaf, encoding in encodings.items() if encoding is None],
            column_encoding={leaf: encoding for leaf, encoding in encodings.items() if encoding},
            write_page_checksum=True,
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def write_table(self, table: pa.Table, row_group_size: int) -> None:
        """Append rows in row groups of this size."""
        self._writer.write_table(table, row_group_size=row_group_size)

    def close(self) -> None:
        """Write the footer."""
        self._writer.add_key_value_metadata({ROWS_HASH: self._file.hash.hexdigest()})
        self._writer.close()
        self._file.close()


class _HashedFile(io.FileIO):
    """A file that hashes the bytes written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.hash = hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write all bytes; FileIO may write only some of them."""
        self.hash.update(content)
        left = memoryview(content).cast("B")
        size = len(left)
        while left:
            left = left[super().write(left) :]
        return size


def _full(field: pa.Field) -> pa.Field:
    """The column with non-nullable int64 values; lists of them may be null, which means empty."""
    if pa.types.is_list(field.type) and field.type.value_type == pa.int64():
        return field.with_type(pa.list_(pa.field("element", pa.int64(), nullable=False)))
    return field.with_nullable(False) if field.type == pa.int64() else field


def _leaf(field: pa.Field) -> str:
    """Path of the values of a column in Parquet."""
    nested = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if nested else field.name


def _encoding(field: pa.Field) -> str | None:
    """Encoding of the values of a column in Parquet; None: by dictionary."""
    if pa.types.is_fixed_size_list(field.type):
        return "BYTE_STREAM_SPLIT"
    leaf = field.type.value_type if pa.types.is_list(field.type) else field.type
    return "DELTA_BINARY_PACKED" if leaf == pa.int64() else None


def summarise(folder: Path, name: str, schema: Schema, *, generation: int = 1) -> PartSummary:
    """Check the columns of a part and read back its summary for the manifest.

    Args:
        folder: the training set.
        name: path of the part in it.
        schema: the training set's.
        generation: number of the ingest that writes the part.
    """
    with pa.OSFile(str(folder / name)) as source, pq.ParquetFile(source) as file:
        _check_columns(schema, file.schema_arrow, name)
        here = fingerprint(source)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        columns = [schema.time_column, *(task.column for task in schema.tasks)]
        table = file.read(columns, use_threads=False)
    time = table[schema.time_column].to_numpy()
    known = {task.name: table[task.column].drop_null().to_numpy() for task in schema.tasks}
    times_ms = (int(time.min()), int(time.max()))
    return PartSummary(
        part=Part(
            file=name,
            rows=sum(groups),
            row_groups=tuple(groups),
            fingerprint=here,
            generation=generation,
            time_range_ms=None if times_ms == NO_TIME else times_ms,
        ),
        time_range_ms=times_ms,
        label_sums={task: float(np.sum(labels)) for task, labels in known.items()},
        labels={task: len(labels) for task, labels in known.items()},
    )


def make_split(parts: Sequence[PartSummary]) -> Split:
    """The split that consists of these parts, one or more."""
    return join_splits(
        [
            Split(
                rows=summary.part.rows,
                time_range_ms=summary.time_range_ms,
                base_rates={
                    t: s / max(summary.labels[t], 1) for t, s in summary.label_sums.items()
                },
                labels=summary.labels,
                parts=(summary.part,),
            )
            for summary in parts
        ]
    )


def join_splits(splits: Sequence[Split]) -> Split:
    """One split with the parts of all these splits, one or more."""
    labels = {task: sum(split.labels[task] for split in splits) for task in splits[0].labels}
    sums = {task: sum(s.base_rates[task] * s.labels[task] for s in splits) for task in labels}
    return Split(
        rows=sum(split.rows for split in splits),
        time_range_ms=(
            min(split.time_range_ms[0] for split in splits),
            max(split.time_range_ms[1] for split in splits),
        ),
        base_rates={task: sums[task] / max(labels[task], 1) for task in labels},
        labels=labels,
        parts=tuple(part for split in splits for part in split.parts),
    )


def content_hash(folder: Path, schema: Schema, splits: Mapping[str, Split]) -> str:
    """Hash of the schema and the footers of all parts."""
    digest = hashlib.sha256(schema.model_dump_json().encode())
    for split in splits.values():
        for part in split.parts:
            with (folder / part.file).open("rb") as file:
                file.seek(-8, 2)
                footer = int.from_bytes(file.read(4), "little")
                file.seek(-8 - footer, 2)
                digest.update(file.read(footer))
    return digest.hexdigest()


def _check_columns(schema: Schema, found: pa.Schema, file: str) -> None:
    for column in (*schema.columns, schema.time_column):
        assert column in found.names, f"{file} lacks column {column}"
        expected = arrow_type(schema, column)
        got = found.field(column).type
        assert same_type(got, expected), f"{file}: column {column} is {got}, expected {expected}"
