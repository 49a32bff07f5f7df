"""Writes a training set: Parquet parts per split, then the manifest, then one rename.

Nothing stands at the target until everything does: parts are written into a sibling folder that
is renamed at the end. A half-written folder of a killed run is removed by the next one.
"""

import hashlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist import __version__
from infnet_dist.data.manifest import (
    MANIFEST,
    Manifest,
    Part,
    Split,
    arrow_type,
    read_manifest,
    write_manifest,
)
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema


class TrainingSetWriter:
    """Context manager: `write` chunks of rows to splits; leaving it publishes the set.

    Args:
        folder: the training set to make.
        rows_per_part: rows per Parquet file.
        row_group_rows: rows per row group.
        source: what the set is made from; goes into the manifest.

    Raises:
        DataError: `folder` exists already and isn't empty.
    """

    def __init__(
        self, folder: Path, *, rows_per_part: int, row_group_rows: int, source: dict[str, Any]
    ) -> None:
        """Prepare an empty sibling folder; nothing stands at `folder` until `publish`."""
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} exists already; choose another data.path or remove it")
        self._folder = folder
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._rows_per_part = rows_per_part
        self._row_group_rows = row_group_rows
        self._source = source
        self._splits: dict[str, _SplitWriter] = {}
        self._schema: Schema | None = None

    def __enter__(self) -> Self:
        """Start from an empty partial folder."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what wasn't published."""
        for split in self._splits.values():
            split.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, split: str, table: pa.Table) -> None:
        """Append rows to a split; columns keep the order and types of the first chunk."""
        if split not in self._splits:
            self._splits[split] = _SplitWriter(
                self._partial, split, self._rows_per_part, self._row_group_rows
            )
        self._splits[split].write(table)

    def publish(self, schema: Schema) -> Manifest:
        """Check the columns against `schema`, write the manifest, move the set to its place."""
        for split in self._splits.values():
            split.close()
        if not self._splits or any(split.is_empty for split in self._splits.values()):
            raise DataError(f"no rows for the training set {self._folder}; check its source")
        splits = {name: s.describe(schema) for name, s in self._splits.items()}
        manifest = Manifest(
            schema_=schema,
            splits=splits,
            source=self._source,
            code_version=__version__,
            content_hash=self._hash(schema, splits),
        )
        write_manifest(self._partial, manifest)
        if self._folder.exists():
            self._folder.rmdir()
        self._partial.rename(self._folder)
        return manifest

    def _hash(self, schema: Schema, splits: dict[str, Split]) -> str:
        digest = hashlib.sha256(schema.model_dump_json().encode())
        for split in splits.values():
            for part in split.parts:
                with (self._partial / part.file).open("rb") as file:
                    file.seek(-8, 2)
                    footer = int.from_bytes(file.read(4), "little")
                    file.seek(-8 - footer, 2)
                    digest.update(file.read(footer))
        return digest.hexdigest()


class _SplitWriter:
    """Rolls over Parquet parts of one split."""

    def __init__(self, folder: Path, name: str, rows_per_part: int, row_group_rows: int) -> None:
        self._folder = folder
        self._name = name
        self._rows_per_part = rows_per_part
        self._row_group_rows = row_group_rows
        self._files: list[str] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows_in_part = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def write(self, table: pa.Table) -> None:
        while table.num_rows:
            room = min(self._row_group_rows, self._rows_per_part - self._rows_in_part)
            room -= self._pending_rows
            self._pending.append(table.slice(0, room))
            self._pending_rows += min(room, table.num_rows)
            table = table.slice(room)
            if self._pending_rows == min(
                self._row_group_rows, self._rows_per_part - self._rows_in_part
            ):
                self._flush()

    def _flush(self) -> None:
        if not self._pending_rows:
            return
        table = pa.concat_tables(self._pending).combine_chunks()
        if self._writer is None:
            self._files.append(f"{self._name}/part-{len(self._files):05d}.parquet")
            path = self._folder / self._files[-1]
            path.parent.mkdir(exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=self._row_group_rows)
        self._rows_in_part += table.num_rows
        self._pending, self._pending_rows = [], 0
        if self._rows_in_part == self._rows_per_part:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows_in_part = None, 0

    def close(self) -> None:
        self._flush()
        self._close_part()

    @property
    def is_empty(self) -> bool:
        return not self._files

    def describe(self, schema: Schema) -> Split:
        """Rows, time range and label means, read back from what was written."""
        parts, times = [], []
        sums, known = ({task.name: 0.0 for task in schema.tasks} for _ in range(2))
        for name in self._files:
            file = pq.ParquetFile(self._folder / name)
            _check_columns(schema, file.schema_arrow, name)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            parts.append(Part(file=name, rows=sum(groups), row_groups=tuple(groups)))
            columns = [schema.time_column, *(t.column for t in schema.tasks)]
            for batch in file.iter_batches(columns=columns):
                time = batch.column(schema.time_column).to_numpy()
                times += [int(time.min()), int(time.max())]
                for task in schema.tasks:
                    labels = batch.column(task.column).drop_null().to_numpy()
                    sums[task.name] += float(np.sum(labels))
                    known[task.name] += len(labels)
        rows = sum(part.rows for part in parts)
        return Split(
            rows=rows,
            time_range_ms=(min(times), max(times)),
            base_rates={n: sums[n] / known[n] if known[n] else 0.0 for n in sums},
            parts=tuple(parts),
        )


def _check_columns(schema: Schema, found: pa.Schema, file: str) -> None:
    for column in (*schema.columns, schema.time_column):
        assert column in found.names, f"{file} lacks column {column}"
        expected = arrow_type(schema, column)
        got = found.field(column).type
        assert got == expected, f"{file}: column {column} is {got}, expected {expected}"


def training_set_is_current(folder: Path, source: dict[str, Any]) -> bool:
    """Whether `folder` already holds the training set that `source` describes.

    Raises:
        DataError: it holds something else, which stays untouched.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if (folder / MANIFEST).is_file() and read_manifest(folder).source == source:
        return True
    raise DataError(
        f"{folder} holds something made from other settings{_first_difference(folder, source)}; it "
        f"stays untouched: choose another data.path or remove the folder"
    )


def _first_difference(folder: Path, source: dict[str, Any]) -> str:
    """The first setting that differs, if a training set stands there."""
    found = read_manifest(folder).source if (folder / MANIFEST).is_file() else source
    for key in dict.fromkeys([*source, *found]):
        got, wanted = found.get(key, "nothing"), source.get(key, "nothing")
        if got != wanted:
            return f" (ingest.{key}: {got} there, {wanted} here)"
    return ""
