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


class HashedTable(_Entry):
    """Distinct values of a hashed table in all logs so far, estimated, and how they collide.

    Attributes:
        values: distinct values, within a few percent.
        sharing: expected share of them that share a row with another, by one hash function.
        indistinct: expected share that share all their rows with another.
    """

    values: int
    sharing: float
    indistinct: float


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
        unreadable: files that the last ingest left out, with the reason; the next one tries again.
        quarantined: bad rows of all ingests by reason.
        left_out: rows of all ingests before train ("early") and in gaps ("left_out").
        hashed: by table that rows are found in by hash, raw ones included.
    """

    generation: int = Field(ge=1)
    last_time_ms: int
    boundary_ms: int
    files: tuple[LogFile, ...]
    unreadable: dict[str, str]
    quarantined: dict[str, int]
    left_out: dict[str, int]
    hashed: dict[str, HashedTable] = Field(default_factory=dict)

    @property
    def num_bad(self) -> int:
        """Quarantined rows of all ingests."""
        return sum(self.quarantined.values())


class FeatureStatistics(_Entry):
    """One key of the KeyedJaggedTensor in a sample of a split.

    Attributes:
        mean_length: ids per row.
        p99_length: 99 % of the rows have at most so many ids.
        coverage: share of the ids that aren't 0, which stands for unknown.
        distinct: distinct ids but 0.
        top_share: the commonest id's share of those that aren't 0.
    """

    mean_length: float
    p99_length: float
    coverage: float
    distinct: int
    top_share: float


class SplitStatistics(_Entry):
    """The features in a sample of so many rows of a split, by key."""

    rows: int
    features: dict[str, FeatureStatistics]


class TableStatistics(_Entry):
    """Lookups of a table in the sample of train, at most as many as its rows; distinct ids."""

    lookups: int
    distinct: int


class Statistics(_Entry):
    """What samples of a training set look like.

    Attributes:
        splits: by split.
        tables: by table.
        drift: by key how far valid's shares of ids are from train's: 0 the same, 1 disjoint.
    """

    splits: dict[str, SplitStatistics]
    tables: dict[str, TableStatistics]
    drift: dict[str, float]


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
    statistics: Statistics | None = None

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


def same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether two types are the same, no matter whether items of lists may be null."""
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return bool(found.value_type == expected.value_type)
    return bool(found == expected)


_MAKE_ONE = "make one with: python -m ray_jobs.ingest --config CONFIG"
