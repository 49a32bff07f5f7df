"""Publishes the files of an ingest: moves them into the set, then writes the manifest."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infnet_dist import __version__
from infnet_dist.data.manifest import (
    Ingested,
    Manifest,
    Split,
    TransformsFile,
    read_manifest,
    write_manifest,
)
from infnet_dist.data.statistics import sample_statistics
from infnet_dist.ingest.writing.parts import (
    PartSummary,
    content_hash,
    join_splits,
    make_split,
)
from infnet_dist.ingest.writing.target import publish_folder
from infnet_dist.schema import Schema

_STAGED = "staged"  # folder of the new manifest, below the work folder; written after all else


@dataclass(frozen=True)
class StagedSet:
    """Everything that one ingest adds to a training set, in a folder of its own.

    Attributes:
        folder: the folder.
        parts: parts by split.
        source: the `ingest` section.
        earlier: manifest of the existing set; None for a new one.
        pending_is_train: whether all rows of the existing set belong to train now.
        files_left_out: reasons by path of files that weren't read.
        transforms: the manifest's entry for the transforms.
    """

    folder: Path
    schema: Schema
    parts: dict[str, list[PartSummary]]
    ingested: Ingested
    source: dict[str, Any]
    earlier: Manifest | None
    pending_is_train: bool
    files_left_out: dict[str, str]
    transforms: TransformsFile


def write_staged_manifest(staged: StagedSet, work: Path) -> None:
    """Write the manifest to publish: from here on nothing is computed, files are only moved."""
    added = {split: make_split(parts) for split, parts in staged.parts.items() if parts}
    digest = content_hash(staged.folder, staged.schema, added)
    if staged.earlier is not None:
        digest = hashlib.sha256((staged.earlier.content_hash + digest).encode()).hexdigest()
    manifest = Manifest(
        schema_=staged.schema,
        splits=_all_splits(staged, added),
        source=staged.source,
        code_version=__version__,
        content_hash=digest,
        ingested=staged.ingested,
        files_left_out=staged.files_left_out,
        transforms=staged.transforms,
    )
    if staged.earlier is None:
        manifest = _with_statistics(manifest, staged.folder)
        write_manifest(staged.folder, manifest)
    (work / _STAGED).mkdir(exist_ok=True)
    write_manifest(work / _STAGED, manifest)


def is_staged(work: Path) -> bool:
    """Whether all stages are done."""
    return (work / _STAGED / "manifest.json").is_file()


def publish(work: Path, folder: Path) -> Manifest:
    """Move all files into `folder`, write the manifest, remove the work folder; repeatable.

    A new set is published by one rename. In an existing set the files are moved first; nobody reads
    them before the manifest names them.
    """
    manifest, staged = read_manifest(work / _STAGED), work / "set"
    assert manifest.ingested is not None
    if manifest.ingested.generation == 1:
        publish_folder(staged, folder)
    else:
        _move_in(staged, folder)
        write_manifest(folder, _with_statistics(manifest, folder))
        _remove_old(folder, manifest.ingested.generation)
    shutil.rmtree(work)
    return read_manifest(folder)


def remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Remove the files of an ingest that was killed while it moved files into the set."""
    assert manifest.ingested is not None
    named = {part.file for split in manifest.splits.values() for part in split.parts}
    known = {f"g{i + 1:04d}" for i in range(manifest.ingested.generation)}
    for path in folder.glob("*/*.parquet"):
        if str(path.relative_to(folder)) not in named:
            path.unlink()
    by_ingest = ("state/*", "quarantine/*", "transforms/*")
    for path in [path for pattern in by_ingest for path in folder.glob(pattern)]:
        if path.name not in known:
            shutil.rmtree(path)
    for path in folder.glob("vocabulary/*/*.parquet"):
        if path.stem not in known:
            path.unlink()


def _with_statistics(manifest: Manifest, folder: Path) -> Manifest:
    return manifest.model_copy(update={"statistics": sample_statistics(folder, manifest)})


def _all_splits(staged: StagedSet, added: dict[str, Split]) -> dict[str, Split]:
    if staged.earlier is None:
        return added
    found: dict[str, list[Split]] = {}
    for name, split in staged.earlier.splits.items():
        if staged.pending_is_train and name != "train":
            split = _moved(split, staged.ingested.generation)
        found.setdefault("train" if staged.pending_is_train else name, []).append(split)
    for name, split in added.items():
        found.setdefault(name, []).append(split)
    return {name: join_splits(splits) for name, splits in found.items()}


def _moved(split: Split, generation: int) -> Split:
    """The split as part of train from this ingest on."""
    update = {"generation": generation}
    parts = tuple(part.model_copy(update=update) for part in split.parts)
    return split.model_copy(update={"parts": parts})


def _move_in(staged: Path, folder: Path) -> None:
    for path in sorted([*staged.rglob("*.parquet"), *staged.glob("transforms/*/*")]):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _remove_old(folder: Path, generation: int) -> None:
    """Remove earlier state, and transforms but the last ones, which may be in use."""
    current, last = (f"g{number:04d}" for number in (generation, generation - 1))
    for path in (folder / "state").iterdir():
        if path.name != current:
            shutil.rmtree(path)
    for path in (folder / "transforms").iterdir():
        if path.name not in (current, last):
            shutil.rmtree(path)
