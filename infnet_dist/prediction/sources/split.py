"""A split of a training set as input, read as evaluation reads it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import pyarrow as pa

from infnet_dist.data.checks.values import check_types
from infnet_dist.data.manifest import Manifest, Part
from infnet_dist.data.part_files import UnreadableError, open_checked, part_opener
from infnet_dist.errors import DataError
from infnet_dist.prediction.sources.source import (
    InputFile,
    InputGroup,
    InputRows,
    check_same_types,
    group_sizes,
    key_columns,
    types_of_keys,
)
from infnet_dist.schema import Schema

_NUMBER = "row number of predict"  # no column of a training set


@dataclass(frozen=True)
class SplitSource:
    """The parts of a split.

    Attributes:
        folder: the training set.
        split: name of the split.
        parts: its parts, with fingerprints.
        schema: the columns to read.
        reader: decoder of row groups (`data.reader`).
        files: the same parts as input files.
        key_types: types of the key columns.
    """

    folder: Path
    split: str
    parts: tuple[Part, ...]
    schema: Schema
    reader: Literal["arrow", "petastorm"]
    files: tuple[InputFile, ...]
    key_types: dict[str, pa.DataType]

    @property
    def place(self) -> str:
        """Split and training set."""
        return f"split {self.split} of {self.folder}"

    @property
    def advice(self) -> str:
        """Ingest made the rows: the message is complete."""
        return ""

    def read(self, groups: Iterable[InputGroup]) -> Iterator[InputRows]:
        """See `Source.read`."""
        open_part = part_opener(self.reader, self.schema)
        columns = list(dict.fromkeys([*self.schema.columns, *self.key_types]))
        for file, together in groupby(groups, key=lambda group: group.file):
            part = self.parts[file]
            where, starts = str(self.folder / part.file), _starts(part.rows_in_file)
            try:
                with open_checked(self.folder, part, open_part) as opened:
                    for group in together:
                        where = f"row group {group.number} of {self.folder / part.file}"
                        table = opened.read_group(group.number, columns, number=_NUMBER)
                        numbers = table.column(_NUMBER).to_numpy() + starts[group.number]
                        features = table.select(list(self.schema.columns))
                        keys = key_columns(table, self.key_types)
                        yield InputRows(features, keys, pa.array(numbers))
            except (OSError, pa.ArrowException, UnreadableError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"can't read {where}: {reason}; repair the file") from None


def open_split(
    folder: Path,
    manifest: Manifest,
    split: str,
    schema: Schema,
    *,
    reader: Literal["arrow", "petastorm"],
    keys: Sequence[str],
) -> SplitSource:
    """Open all parts of a split, and check their columns.

    Raises:
        DataError: no such split, a part is missing or has changed, or lacks a column.
    """
    parts, files, key_types = [], [], dict[str, pa.DataType]()
    open_part = part_opener(reader, schema)
    for part in manifest.split(split).parts:
        path = folder / part.file
        try:
            with open_checked(folder, part, open_part) as opened:
                found = opened.file.schema_arrow
                check_types(found, schema, str(path))
                types = types_of_keys(found, keys, str(path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} can't be read as Parquet: {error}; ingest again") from None
        key_types = key_types or types
        check_same_types(key_types, types, str(path))
        parts.append(part.model_copy(update={"fingerprint": opened.fingerprint}))
        sizes = group_sizes(part.file, part.row_groups)
        files.append(InputFile(part.file, parts[-1].identity, sizes))
    return SplitSource(folder, split, tuple(parts), schema, reader, tuple(files), key_types)


def _starts(sizes: Sequence[int]) -> list[int]:
    """Number of rows before each row group."""
    starts, start = [], 0
    for rows in sizes:
        starts.append(start)
        start += rows
    return starts
