"""manifest.json of a bundle: what it looks up, its files and their hashes; needs numpy alone.

A bundle is a folder:

    manifest.json         written last
    user.pt2              history -> what candidates need of the user (models with a history)
    candidates.pt2        that, and the embeddings of N candidates -> logits
    table-000-00000.bin   rows of a table, one after the other (`serving.encoding`)
    model_card.json, model_card.md, example_request.json
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from infnet_dist.errors import BundleError, DataError
from infnet_dist.features.typed_json import typed

MANIFEST = "manifest.json"
USER, CANDIDATES = "user.pt2", "candidates.pt2"
TIME_GAP = "time_gap_bucket"  # key of the time gaps among the attributes of a history's items
DataType = Literal["fp32", "fp16", "int8"]
_FORMAT = 1
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class StoredFile:
    """A file of a bundle."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """Rows of a table from `first_row` on, in a file."""

    file: str
    first_row: int
    rows: int


@dataclass(frozen=True)
class StoredTable:
    """A table; its shards are in the order of their rows."""

    name: str
    rows: int
    width: int
    data_type: DataType
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Field:
    """A feature with one embedding per row; a bag has up to `max_length` ids, which are pooled."""

    name: str
    table: str
    kind: Literal["single", "bag"]
    pooling: Literal["sum", "mean"] | None
    weighted: bool
    max_length: int


@dataclass(frozen=True)
class Attribute:
    """An attribute of the items of a history."""

    name: str
    table: str


@dataclass(frozen=True)
class Behaviour:
    """A history, newest item first; `time_gaps`: whether items have buckets of time gaps."""

    name: str
    max_length: int
    attributes: tuple[Attribute, ...]
    time_gaps: bool


@dataclass(frozen=True)
class Vector:
    """A given embedding of `dim` floats."""

    name: str
    dim: int


@dataclass(frozen=True)
class ScoredTask:
    """A task; a watch time is trained in units of `mean_ms`."""

    name: str
    kind: Literal["binary", "watch_time"]
    mean_ms: float


@dataclass(frozen=True)
class BundleManifest:
    """What a bundle holds.

    Attributes:
        step: of the checkpoint.
        checkpoint: its name, the SHA-256 of its manifest, and its training set's content hash.
        made: when the bundle was exported, UTC.
        versions: of the software that exported it.
        num_buckets: time-gap buckets are below it.
        dense: names of the standardised dense features.
    """

    step: int
    checkpoint: dict[str, str]
    made: str
    versions: dict[str, str | None]
    num_buckets: int
    tasks: tuple[ScoredTask, ...]
    fields: tuple[Field, ...]
    vectors: tuple[Vector, ...]
    dense: tuple[str, ...]
    behaviours: tuple[Behaviour, ...]
    tables: tuple[StoredTable, ...]
    files: tuple[StoredFile, ...]
    format_version: int = _FORMAT

    def file(self, name: str) -> StoredFile | None:
        """The file of this name; None if the bundle has none."""
        return next((file for file in self.files if file.name == name), None)


def write_manifest(folder: Path, manifest: BundleManifest) -> None:
    """Write the manifest, with a hash of its content as the first key."""
    raw = asdict(manifest)
    (folder / MANIFEST).write_text(json.dumps({"sha256": _digest(raw), **raw}, indent=1) + "\n")


def read_manifest(folder: Path) -> BundleManifest:
    """Read the manifest of a bundle.

    Raises:
        BundleError: there is none, it is damaged, or it is of another version.
    """
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise BundleError(
            f"{folder} is no bundle: {MANIFEST} can't be read ({error.strerror}); make one with "
            "infnet export"
        ) from None
    except (ValueError, RecursionError):
        raise _damaged(folder, "it isn't JSON") from None
    if not isinstance(raw, dict) or raw.pop("sha256", None) != _digest(raw):
        raise _damaged(folder, "its hash is wrong")
    if (version := raw.get("format_version")) != _FORMAT:
        raise BundleError(
            f"bundle {folder} has format version {version}, expected {_FORMAT}; export it again"
        )
    try:
        manifest = typed(raw, BundleManifest)
    except DataError as error:
        raise _damaged(folder, str(error)) from None
    for name in (file.name for file in manifest.files):
        if not _FILE.fullmatch(name):
            raise _damaged(folder, f"{name[:100]!r} is no name of a file")
    return manifest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, manifest: BundleManifest, *, content: bool = True) -> None:
    """Check the sizes of all files, and their hashes if `content`.

    Raises:
        BundleError: names the file, and its table and rows.
    """
    places = {
        shard.file: f" (table {table.name!r}, rows {shard.first_row:,} to "
        f"{shard.first_row + shard.rows - 1:,})"
        for table in manifest.tables
        for shard in table.shards
    }
    for file in manifest.files:
        place = f"{file.name}{places.get(file.name, '')}"
        try:
            size = (folder / file.name).stat().st_size
            wrong = size != file.size or (content and sha256_of(folder / file.name) != file.sha256)
        except OSError as error:
            raise BundleError(
                f"bundle {folder} is incomplete: {place} can't be read ({error.strerror}); export "
                "or copy it again"
            ) from None
        if wrong:
            what = "its hash is wrong" if size == file.size else f"{size} bytes, not {file.size}"
            raise BundleError(
                f"bundle {folder} is damaged: {place}: {what}; export or copy it again"
            )


def _digest(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, what: str) -> BundleError:
    return BundleError(f"bundle {folder} has a damaged {MANIFEST}: {what}; export or copy it again")
