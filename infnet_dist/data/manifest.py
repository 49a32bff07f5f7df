"""`manifest.json`: schema, parts and statistics of a training set.

my_set/
manifest.json            written last: a folder without it is no training set
train/part-00000.parquet
valid/part-00000.parquet
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infnet_dist.config.limits import MAX_GROUP_ROWS, MAX_TABLE_ROWS
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.io.parsing import (
    MalformedError,
    Name,
    check_plain,
    checked,
    first_error,
    parse_json,
)
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
    """One Parquet file; `row_groups` has the number of rows of each row group.

    `file` is relative to the training set's folder and inside of it; links are followed. Only a set
    that describes Petastorm data in place may have absolute paths. `fingerprint`
    (`data/checks/fingerprint.py`), `generation` and `time_range_ms` are None in sets of earlier
    versions.

    Attributes:
        generation: number of the ingest that added the rows to their split: the one that wrote
            them, or, for rows of valid or test that belong to train now, the one that moved them.
            So no later ingest changes a generation of train. 1 for sets that can't grow.
        time_range_ms: times of the first and the last row, in epoch milliseconds; None if unknown.
    """

    file: FileName
    rows: Count
    row_groups: tuple[Rows, ...]
    fingerprint: Fingerprint | None = None
    generation: int | None = Field(None, ge=1, lt=2**31)
    time_range_ms: tuple[Moment, Moment] | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the file is outside of the training set's folder."""
        return PurePosixPath(self.file).is_absolute()

    @property
    def rows_in_file(self) -> tuple[int, ...]:
        """Number of rows of each row group of the file, whether they are read or not."""
        return self.row_groups

    @property
    def identity(self) -> str:
        """Text that differs for other rows."""
        return str(self.fingerprint)

    @property
    def selects_by(self) -> tuple[str, ...]:
        """Columns that `select` needs."""
        return ()

    def select(self, table: pa.Table, index: int) -> pa.Table:
        """The rows of a row group that are read: here all (see `window/selected_part.py`)."""
        return table

    @model_validator(mode="after")
    def _check(self) -> Self:
        if ".." in PurePosixPath(self.file).parts:
            raise ValueError(f"{self.file} is outside of the folder")
        if self.rows != sum(self.row_groups):
            raise ValueError(
                f"{self.file}: {self.rows} rows, but {sum(self.row_groups)} in its row groups"
            )
        return self


class Split(_Entry):
    """One split: parts, time range (epoch milliseconds, both ends included) and label means.

    `base_rates` are means over the known labels of a task (0 if there are none), `labels` their
    numbers.
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
    """Estimated number of distinct values of a hashed table in all logs, and their collisions.

    Attributes:
        values: distinct values, within a few percent.
        sharing: expected share of values that share a row with another, under one hash function.
        indistinct: expected share of values that share all their rows with another.
        unseen: share of lookups in valid and test, in the last logs, whose value isn't in train.
    """

    values: Count
    sharing: float
    indistinct: float
    unseen: float = 0.0


class SampledNegatives(_Entry):
    """The share of the negative rows of train that was kept; valid and test have all their rows.

    Rows with a label of 0 for the task, and no other label, are in train with probability `share`:
    predictions of models trained on it are to be corrected
    (`infnet_dist.reranking.calibration.negatives`).

    Attributes:
        contradicting: rows of train with another label although that of the task is 0; all are
            kept, and the correction is exact only without them.
    """

    task: Name
    share: float = Field(gt=0, lt=1)
    contradicting: Count = 0


class LogFile(_Entry):
    """A log file at the time when it was ingested."""

    path: str
    size: Count
    modified_ns: Moment


class Ingested(_Entry):
    """The logs that were ingested, so that later logs can be added.

    Attributes:
        generation: number of ingests that added logs.
        last_time_ms: time of the latest impression; added logs must be later.
        boundary_ms: the state has all rows from this time on, and sums and newest events before.
        files: files that were read.
        unreadable: files that the last ingest skipped, with reasons; the next ingest tries again.
        quarantined: bad rows of all ingests by reason; a row may have several.
        bad_rows: number of bad rows; None (earlier versions): each row has one reason.
        left_out: rows of all ingests before train ("early"), in gaps ("left_out"), and negative
            ones of train that weren't sampled ("negatives").
        negatives: how negative rows of train were sampled; None: all are kept.
        hashed: statistics by hashed or raw table.
        grew_from: content hash of the training set before each ingest that added to it.
    """

    generation: int = Field(ge=1, lt=2**31)
    last_time_ms: Moment
    boundary_ms: Moment
    files: tuple[LogFile, ...]
    unreadable: dict[str, str]
    quarantined: dict[str, Count]
    bad_rows: Count | None = None
    left_out: dict[str, Count]
    negatives: SampledNegatives | None = None
    hashed: dict[str, HashedTable] = Field(default_factory=dict)
    grew_from: tuple[str, ...] = ()

    @property
    def num_bad(self) -> int:
        """Number of quarantined rows of all ingests."""
        return sum(self.quarantined.values()) if self.bad_rows is None else self.bad_rows


class FeatureStatistics(_Entry):
    """One key of the KeyedJaggedTensor in a sample of a split.

    Attributes:
        mean_length: mean number of ids per row.
        p99_length: 99th percentile of the number of ids per row.
        coverage: share of ids that aren't 0 (unknown).
        distinct: number of distinct ids other than 0.
        top_share: share of the most frequent id among ids other than 0.
    """

    mean_length: float
    p99_length: float
    coverage: float
    distinct: Count
    top_share: float


class SplitStatistics(_Entry):
    """Statistics from a sample of `rows` rows of a split.

    Attributes:
        features: by key of the KeyedJaggedTensors.
        vectors: share of rows that have one, by vector.
    """

    rows: Count
    features: dict[str, FeatureStatistics]
    vectors: dict[str, float] = Field(default_factory=dict)


class TableStatistics(_Entry):
    """Lookups of a table in the sample of train (at most as many as its rows), and distinct ids."""

    lookups: Count
    distinct: Count


class Statistics(_Entry):
    """Statistics of samples of a training set.

    Attributes:
        splits: by split.
        tables: by table.
        drift: by key, distance between the shares of ids in train and valid: 0 equal, 1 disjoint.
    """

    splits: dict[str, SplitStatistics]
    tables: dict[str, TableStatistics]
    drift: dict[str, float]


class TransformsFile(_Entry):
    """The file that says how raw rows become those of the set (`infnet_dist.features`), its hash.

    `file` is relative to the training set's folder.
    """

    file: Annotated[str, Field(pattern=r"^transforms/g\d{4,10}/transforms\.json$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Entry):
    """The contents of a training set.

    `source` is the resolved ingest section that it was made with. `content_hash` covers the schema
    and the footers of all parts. `files_left_out` has the reason by path for files beside the raw
    files that weren't read. `raw_files` are the raw files, relative to the source's path (those of
    logs are in `ingested`). `transforms` is None in sets of earlier versions and of sources whose
    rows are made in other ways; it isn't part of the content hash.
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
    transforms: TransformsFile | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_plain(self.source)
        for table in self.schema_.tables:
            if table.num_embeddings > MAX_TABLE_ROWS:
                raise ValueError(f"schema: table {table.name!r} has {table.num_embeddings} rows")
        if self.is_elsewhere and self.source.get("source") != "petastorm":
            raise ValueError("splits: a part has an absolute path, outside of the folder")
        return self

    @property
    def is_elsewhere(self) -> bool:
        """Whether parts are outside of the training set's folder."""
        return any(part.is_elsewhere for split in self.splits.values() for part in split.parts)

    def grew_from(self, content_hash: str) -> bool:
        """Whether it is the set with this content hash after logs were added to that one.

        Ids keep their meaning: vocabularies only gain ids, after all earlier ones.
        """
        return self.ingested is not None and content_hash in self.ingested.grew_from

    def identity(self, schema: Schema) -> str:
        """Hash of the selected schema, the fingerprints of all parts, and which rows are read."""
        # Without defaults, so that options of later versions don't change the hash.
        digest = hashlib.sha256(schema.model_dump_json(exclude_defaults=True).encode())
        for name, split in sorted(self.splits.items()):
            for part in split.parts:
                digest.update(f"{name} {part.identity}\n".encode())
        return digest.hexdigest()

    def with_fingerprints(self, name: str, found: Sequence[str]) -> Self:
        """A copy with the fingerprints of a split's parts."""
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
            text = unknown_name("split", name, self.splits)
            raise DataError(f"{text}; {_DIVIDE}" if name == "valid" else text)
        return self.splits[name]


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check a training set's manifest.

    Raises:
        DataError: the folder or the manifest is missing, malformed or of another format.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"no training set at {folder}: no such folder; {_MAKE_ONE}")
    if not path.is_file():
        raise DataError(f"no training set at {folder}: it has no {MANIFEST}; {_MAKE_ONE}")
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DataError(f"{path} exceeds {MAX_MANIFEST_BYTES} bytes; {_MAKE_ONE}")
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
            f"{path} has format {manifest.format_version}, this version reads {FORMAT_VERSION}; "
            f"{_MAKE_ONE}"
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` by rename, so that it is complete or absent."""
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    temporary.rename(folder / MANIFEST)


def arrow_type(schema: Schema, column: str) -> pa.DataType:
    """The Arrow type of `column` in every part."""
    lists, floats, ints8 = {bag.column for bag in schema.bags}, set[str](), set[str]()
    for sequence in schema.sequences:
        lists.update(a.column for a in sequence.attributes)
        lists.update([sequence.time_gap_column] if sequence.time_gap_column else [])
    floats.update(f.column for f in schema.dense)
    floats.update([schema.weight_column] if schema.weight_column else [])
    ints8.update(task.column for task in schema.tasks if task.kind == "binary")
    if column in lists:
        return pa.list_(pa.int64())
    if column in {bag.weight_column for bag in schema.bags}:
        return pa.list_(pa.float32())
    for vector in schema.vectors:
        if vector.column == column:
            return pa.list_(pa.float32(), vector.dim)
    if column in floats:
        return pa.float32()
    if column in ints8:
        return pa.int8()
    if column in {task.truth_column for task in schema.tasks}:
        return pa.float32()
    return pa.int64()


def same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether two types are equal, ignoring the nullability of list items."""
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return bool(found.value_type == expected.value_type)
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(expected):
        same_size = found.list_size == expected.list_size
        return bool(same_size and found.value_type == expected.value_type)
    return bool(found == expected)


_DIVIDE = (
    "set data.valid_from, the first day or time of valid, to divide the rows of train when they "
    "are read, or set ingest.valid_from and ingest into another data.path"
)
_MAKE_ONE = "make one with: infnet ingest --config CONFIG"
