"""The training set's contract: `manifest.json` beside the Parquet parts of each split.

my_set/
manifest.json            what stands here; written last, so a set without it doesn't exist
train/part-00000.parquet
valid/part-00000.parquet
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infnet_dist.config.logs import MAX_GROUP_ROWS, MAX_TABLE_ROWS
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.io.parsing import MalformedError, check_plain, checked, first_error, parse_json
from infnet_dist.schema import Schema

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 2**28

Count = Annotated[int, Field(ge=0, lt=2**63)]
Moment = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Rows = Annotated[int, Field(ge=0, le=MAX_GROUP_ROWS)]
Fingerprint = Annotated[str, Field(pattern=r"^\d{1,19}:[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,4000}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


class Part(_Entry):
    """One Parquet file; `row_groups` holds the rows of each row group.

    Its name is relative to the set's folder and stays below it; links there are followed. Only a
    set that describes Petastorm data where they lie may name absolute paths. Its `fingerprint`
    (`data/fingerprint.py`) is None in sets that were made before parts had one.
    """

    file: FileName
    rows: Count
    row_groups: tuple[Rows, ...]
    fingerprint: Fingerprint | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it lies outside of the set's folder."""
        return PurePosixPath(self.file).is_absolute()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if ".." in PurePosixPath(self.file).parts:
            raise ValueError(f"{self.file} leaves the folder")
        if self.rows != sum(self.row_groups):
            raise ValueError(f"{self.file}: {self.rows} rows, but {sum(self.row_groups)} in groups")
        return self


class Split(_Entry):
    """One split: its parts, time range (epoch milliseconds, both ends included), label means.

    A task's mean is over the labels that are known, `labels` in number; 0 if none is.
    """

    rows: int = Field(ge=1, lt=2**63)
    time_range_ms: tuple[Moment, Moment]
    base_rates: dict[str, float]
    labels: dict[str, Count] = Field(default_factory=dict)
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
        unseen: share of the last logs' lookups in valid and test whose value train never saw.
    """

    values: Count
    sharing: float
    indistinct: float
    unseen: float = 0.0


class LogFile(_Entry):
    """A file of logs as it was when it was ingested."""

    path: str
    size: Count
    modified_ns: Moment


class Ingested(_Entry):
    """What logs were ingested, so that later ones can be added.

    Attributes:
        generation: how often logs were added.
        last_time_ms: latest impression; what is added must be later.
        boundary_ms: the state holds all rows from then on, and sums and newest events before it.
        files: all that were read.
        unreadable: files that the last ingest left out, with the reason; the next one tries again.
        quarantined: bad rows of all ingests by reason; one may have many.
        bad_rows: how many there are; None: each has one reason, as it was once.
        left_out: rows of all ingests before train ("early") and in gaps ("left_out").
        hashed: by table that rows are found in by hash, raw ones included.
        grew_from: content hashes of the set before each ingest that added to it.
    """

    generation: int = Field(ge=1, lt=2**31)
    last_time_ms: Moment
    boundary_ms: Moment
    files: tuple[LogFile, ...]
    unreadable: dict[str, str]
    quarantined: dict[str, Count]
    bad_rows: Count | None = None
    left_out: dict[str, Count]
    hashed: dict[str, HashedTable] = Field(default_factory=dict)
    grew_from: tuple[str, ...] = ()

    @property
    def num_bad(self) -> int:
        """Quarantined rows of all ingests."""
        return sum(self.quarantined.values()) if self.bad_rows is None else self.bad_rows


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
    distinct: Count
    top_share: float


class SplitStatistics(_Entry):
    """The features in a sample of so many rows of a split, by key."""

    rows: Count
    features: dict[str, FeatureStatistics]


class TableStatistics(_Entry):
    """Lookups of a table in the sample of train, at most as many as its rows; distinct ids."""

    lookups: Count
    distinct: Count


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
    schema and the footers of all parts; `files_left_out` has the reason by path of files that lay
    beside the raw ones and weren't read; `raw_files` are those below the source's path, relative
    to it, where the set was made at once (logs have theirs in `ingested`).
    """

    format_version: int = FORMAT_VERSION
    schema_: Schema = Field(alias="schema")
    splits: dict[str, Split]
    source: dict[str, Any]
    code_version: str
    content_hash: str
    ingested: Ingested | None = None
    statistics: Statistics | None = None
    files_left_out: dict[str, str] = Field(default_factory=dict)
    raw_files: tuple[LogFile, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_plain(self.source)
        for table in self.schema_.tables:
            if table.num_embeddings > MAX_TABLE_ROWS:
                raise ValueError(f"schema: table {table.name!r} has {table.num_embeddings} rows")
        if self.is_elsewhere and self.source.get("source") != "petastorm":
            raise ValueError("splits: a part's name is absolute, so it lies outside of the folder")
        return self

    @property
    def is_elsewhere(self) -> bool:
        """Whether parts lie outside of the set's folder."""
        return any(part.is_elsewhere for split in self.splits.values() for part in split.parts)

    def identity(self, schema: Schema) -> str:
        """Hash of the selected schema, and of the fingerprints of all parts, in order."""
        # Without defaults: the hash stays when a later version knows more of them.
        digest = hashlib.sha256(schema.model_dump_json(exclude_defaults=True).encode())
        for name, split in sorted(self.splits.items()):
            for part in split.parts:
                digest.update(f"{name} {part.fingerprint}\n".encode())
        return digest.hexdigest()

    def with_fingerprints(self, name: str, found: Sequence[str]) -> Self:
        """The same with the fingerprints of a split's parts."""
        split = self.splits[name]
        parts = tuple(
            part.model_copy(update={"fingerprint": one})
            for part, one in zip(split.parts, found, strict=True)
        )
        changed = split.model_copy(update={"parts": parts})
        return self.model_copy(update={"splits": self.splits | {name: changed}})

    def split(self, name: str) -> Split:
        """The split `name`; DataError names the ones that exist."""
        if name not in self.splits:
            raise DataError(unknown_name("split", name, self.splits))
        return self.splits[name]


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check a training set's manifest.

    Raises:
        DataError: the folder or the manifest is missing, empty, malformed or of another format.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"no training set at {folder}: no such folder; {_MAKE_ONE}")
    if not path.is_file():
        raise DataError(f"no training set at {folder}: it has no {MANIFEST}; {_MAKE_ONE}")
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DataError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes; {_MAKE_ONE}")
        manifest = checked(Manifest, parse_json(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from None
    except MalformedError as error:
        raise DataError(f"{path} is not JSON ({error}); {_MAKE_ONE}") from None
    except ValidationError as error:
        raise DataError(f"{path}: {first_error(error)}; {_MAKE_ONE}") from None
    except DataError as error:  # of the schema
        raise DataError(f"{path}: {error}") from None
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


_MAKE_ONE = "make one with: infnet ingest --config CONFIG"
