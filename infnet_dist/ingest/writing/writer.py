"""Writes a training set: Parquet parts per split, then the manifest, then one rename.

The target doesn't exist until the set is complete: parts are written to a sibling folder, which is
renamed at the end. The next run removes the incomplete folder of a killed one.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import pyarrow as pa

from infnet_dist import __version__
from infnet_dist.data.manifest import Manifest, Split, write_manifest
from infnet_dist.data.statistics import sample_statistics
from infnet_dist.errors import DataError
from infnet_dist.features.definition import Definition
from infnet_dist.ingest.writing.parts import PartWriter, content_hash, make_split, summarise
from infnet_dist.ingest.writing.raw_state import raw_state
from infnet_dist.ingest.writing.target import publish_folder, resolve_target
from infnet_dist.ingest.writing.transforms import transforms_folder, write_transforms
from infnet_dist.schema import Schema

_NONE: Mapping[str, str] = MappingProxyType({})


class TrainingSetWriter:
    """Context manager: `write` adds rows to splits, `publish` completes the set.

    Args:
        folder: the training set to make.
        rows_per_part: number of rows per Parquet file.
        row_group_rows: number of rows per row group.
        source: settings that the set is made from, for the manifest.
        nullable: int64 columns that may contain nulls (watch times); other types always may.

    Raises:
        DataError: `folder` exists and isn't empty, or is a mount point.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows_per_part: int,
        row_group_rows: int,
        source: dict[str, Any],
        nullable: Collection[str] = (),
    ) -> None:
        """Check the target; nothing is written yet."""
        folder = resolve_target(folder)
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} already exists; choose another data.path or remove it")
        self._folder = folder
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._rows_per_part = rows_per_part
        self._row_group_rows = row_group_rows
        self._source = source
        self._raw_files = raw_state(source, folder)
        self._nullable = nullable
        self._splits: dict[str, _SplitWriter] = {}
        self._schema: Schema | None = None

    def __enter__(self) -> Self:
        """Create an empty partial folder."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the partial folder."""
        for split in self._splits.values():
            split.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, split: str, table: pa.Table) -> None:
        """Append rows to a split; all chunks have the columns and types of the first one."""
        if split not in self._splits:
            self._splits[split] = _SplitWriter(
                self._partial, split, self._rows_per_part, self._row_group_rows, self._nullable
            )
        self._splits[split].write(table)

    @property
    def transforms(self) -> Path:
        """Folder for key maps that the definition given to `publish` names; it is created."""
        folder = transforms_folder(self._partial)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(
        self,
        schema: Schema,
        files_left_out: Mapping[str, str] = _NONE,
        definition: Definition | None = None,
    ) -> Manifest:
        """Check the columns against `schema`, write the manifest, rename the folder.

        Args:
            schema: features, tables and tasks.
            files_left_out: reasons by path of files that weren't read.
            definition: how raw rows become those of the set; None: unknown.
        """
        for split in self._splits.values():
            split.close()
        if not self._splits or any(split.is_empty for split in self._splits.values()):
            raise DataError(
                f"the training set {self._folder} would have no rows; check the raw data"
            )
        splits = {name: s.describe(schema) for name, s in self._splits.items()}
        manifest = Manifest(
            schema_=schema,
            splits=splits,
            source=self._source,
            code_version=__version__,
            content_hash=content_hash(self._partial, schema, splits),
            files_left_out=dict(files_left_out),
            raw_files=self._raw_files,
            transforms=definition and write_transforms(self._partial, definition),
        )
        statistics = sample_statistics(self._partial, manifest)
        manifest = manifest.model_copy(update={"statistics": statistics})
        write_manifest(self._partial, manifest)
        publish_folder(self._partial, self._folder)
        return manifest


class _SplitWriter:
    """Writes the parts of one split, starting a new one when a part is full."""

    def __init__(
        self,
        folder: Path,
        name: str,
        rows_per_part: int,
        row_group_rows: int,
        nullable: Collection[str],
    ) -> None:
        self._folder = folder
        self._name = name
        self._rows_per_part = rows_per_part
        self._row_group_rows = row_group_rows
        self._nullable = nullable
        self._files: list[str] = []
        self._writer: PartWriter | None = None
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
        self._pending, self._pending_rows = [], 0
        if self._writer is None:
            self._files.append(f"{self._name}/part-{len(self._files):05d}.parquet")
            path = self._folder / self._files[-1]
            path.parent.mkdir(exist_ok=True)
            self._writer = PartWriter(path, table.schema, nullable=self._nullable)
        table = table.cast(self._writer.schema)
        self._writer.write_table(table, row_group_size=self._row_group_rows)
        self._rows_in_part += table.num_rows
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
        """Rows, time range and label means, read back from the parts."""
        return make_split([summarise(self._folder, name, schema) for name in self._files])
