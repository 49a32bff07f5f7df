"""The training set's contract: `manifest.json` beside the Parquet parts of each split.

my_set/
manifest.json            what stands here; written last, so a set without it doesn't exist
train/part-00000.parquet
valid/part-00000.parquet
"""

import json
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.schema import Schema

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Part(_Entry):
    """One Parquet file; `row_groups` holds the rows of each row group."""

    file: str
    rows: int = Field(ge=0)
    row_groups: tuple[int, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rows != sum(self.row_groups):
            raise ValueError(f"{self.file}: {self.rows} rows, but {sum(self.row_groups)} in groups")
        return self


class Split(_Entry):
    """One split: its parts, time range (epoch milliseconds, both ends included), label means.

    A task's mean is over the labels that are known, `labels` in number; 0 if none is.
    """

    rows: int = Field(ge=1)
    time_range_ms: tuple[int, int]
    base_rates: dict[str, float]
    labels: dict[str, int] = Field(default_factory=dict)
    parts: tuple[Part, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        in_parts = sum(part.rows for part in self.parts)
        if self.rows != in_parts:
            raise ValueError(f"{self.rows} rows, but {in_parts} in its parts")
        return self


class LogFile(_Entry):
    """A file of logs as it was when it was ingested."""

    path: str
    size: int
    modified_ns: int


class Ingested(_Entry):
    """What logs were ingested, so that later ones can be added.

    Attributes:
        generation: how often logs were added.
        last_time_ms: latest impression; what is added must be later.
        boundary_ms: the state holds all rows from then on, and sums and newest events before it.
        files: all that were read.
        unreadable: files that were left out, with the reason.
        quarantined: bad rows by reason.
        left_out: rows before train ("early") and in gaps ("left_out").
    """

    generation: int = Field(ge=1)
    last_time_ms: int
    boundary_ms: int
    files: tuple[LogFile, ...]
    unreadable: dict[str, str]
    quarantined: dict[str, int]
    left_out: dict[str, int]


class Manifest(_Entry):
    """What a training set holds.

    `source` says what it was made from (the resolved ingest section); `content_hash` covers the
    schema and the footers of all parts.
    """

    format_version: int = FORMAT_VERSION
    schema_: Schema = Field(alias="schema")
    splits: dict[str, Split]
    source: dict[str, Any]
    code_version: str
    content_hash: str
    ingested: Ingested | None = None

    def split(self, name: str) -> Split:
        """The split `name`; DataError names the ones that exist."""
        if name not in self.splits:
            raise DataError(unknown_name("split", name, self.splits))
        return self.splits[name]


def read_manifest(folder: Path) -> Manifest:
    """Read and check a training set's manifest.

    Raises:
        DataError: the folder or the manifest is missing, empty, malformed or of another format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"no training set at {folder}: no such folder; {_MAKE_ONE}")
    if not path.is_file():
        raise DataError(f"no training set at {folder}: it has no {MANIFEST}; {_MAKE_ONE}")
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}); {_MAKE_ONE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where}: {first['msg']}; {_MAKE_ONE}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {manifest.format_version}, this code reads {FORMAT_VERSION}; "
            f"{_MAKE_ONE}"
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` by rename, so that it is complete or absent."""
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    temporary.rename(folder / MANIFEST)


def arrow_type(schema: Schema, column: str) -> pa.DataType:
    """The Arrow type that `column` must have in every part."""
    lists, floats, ints8 = set[str](), set[str](), set[str]()
    for sequence in schema.sequences:
        lists.update(a.column for a in sequence.attributes)
        lists.update([sequence.time_gap_column] if sequence.time_gap_column else [])
    floats.update(f.column for f in schema.dense)
    ints8.update(task.column for task in schema.tasks if task.kind == "binary")
    if column in lists:
        return pa.list_(pa.int64())
    if column in floats:
        return pa.float32()
    if column in ints8:
        return pa.int8()
    if column in {task.truth_column for task in schema.tasks}:
        return pa.float32()
    return pa.int64()


_MAKE_ONE = "make one with: python -m ray_jobs.ingest --config CONFIG"
