"""Puts what an ingest made into its place; the manifest, written last, makes it count."""

import hashlib
import shutil
from pathlib import Path

from infnet_dist import __version__
from infnet_dist.data.manifest import Manifest, Split, read_manifest, write_manifest
from infnet_dist.data.statistics import take_statistics
from infnet_dist.ingest.logs.job import Made
from infnet_dist.ingest.parts import content_hash, join_splits, make_split

_NOTED = "made"  # folder of the work with the manifest to be; it stands once all else does


def note_made(made: Made, work: Path) -> None:
    """Note what is to be published: from here on nothing is computed, files are only moved."""
    added = {split: make_split(parts) for split, parts in made.parts.items() if parts}
    digest = content_hash(made.staged, made.schema, added)
    if made.earlier is not None:
        digest = hashlib.sha256((made.earlier.content_hash + digest).encode()).hexdigest()
    manifest = Manifest(
        schema_=made.schema,
        splits=_all_splits(made, added),
        source=made.source,
        code_version=__version__,
        content_hash=digest,
        ingested=made.ingested,
        files_left_out=made.files_left_out,
    )
    if made.earlier is None:
        manifest = _with_statistics(manifest, made.staged)
        write_manifest(made.staged, manifest)
    (work / _NOTED).mkdir(exist_ok=True)
    write_manifest(work / _NOTED, manifest)


def is_made(work: Path) -> bool:
    """Whether all stages of this work are done."""
    return (work / _NOTED / "manifest.json").is_file()


def publish(work: Path, folder: Path) -> Manifest:
    """Move all files into `folder`, write the manifest, remove the work; may be repeated.

    A new set appears by one rename. Into a set that is there files are moved first, which nobody
    reads before the manifest names them.
    """
    manifest, staged = read_manifest(work / _NOTED), work / "set"
    assert manifest.ingested is not None
    if manifest.ingested.generation == 1:
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
    else:
        _move_in(staged, folder)
        write_manifest(folder, _with_statistics(manifest, folder))
        _remove_old_state(folder, manifest.ingested.generation)
    shutil.rmtree(work)
    return read_manifest(folder)


def remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Remove what an ingest left behind that was killed while it moved files in."""
    assert manifest.ingested is not None
    named = {part.file for split in manifest.splits.values() for part in split.parts}
    known = {f"g{i + 1:04d}" for i in range(manifest.ingested.generation)}
    for path in folder.glob("*/*.parquet"):
        if str(path.relative_to(folder)) not in named:
            path.unlink()
    for path in [*folder.glob("state/*"), *folder.glob("quarantine/*")]:
        if path.name not in known:
            shutil.rmtree(path)
    for path in folder.glob("vocabulary/*/*.parquet"):
        if path.stem not in known:
            path.unlink()


def _with_statistics(manifest: Manifest, folder: Path) -> Manifest:
    return manifest.model_copy(update={"statistics": take_statistics(folder, manifest)})


def _all_splits(made: Made, added: dict[str, Split]) -> dict[str, Split]:
    if made.earlier is None:
        return added
    there: dict[str, list[Split]] = {}
    for name, split in made.earlier.splits.items():
        there.setdefault("train" if made.pending_is_train else name, []).append(split)
    for name, split in added.items():
        there.setdefault(name, []).append(split)
    return {name: join_splits(splits) for name, splits in there.items()}


def _move_in(staged: Path, folder: Path) -> None:
    for path in sorted(staged.rglob("*.parquet")):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _remove_old_state(folder: Path, generation: int) -> None:
    for path in (folder / "state").iterdir():
        if path.name != f"g{generation:04d}":
            shutil.rmtree(path)
