"""Puts what an ingest made into its place; the manifest, written last, makes it count."""

import hashlib
import shutil
from pathlib import Path

from infnet_dist import __version__
from infnet_dist.data.manifest import MANIFEST, Manifest, Split, read_manifest, write_manifest
from infnet_dist.data.statistics import take_statistics
from infnet_dist.ingest.logs.job import Made
from infnet_dist.ingest.parts import content_hash, join_splits, make_split


def publish(made: Made, folder: Path, work: Path) -> Manifest:
    """Move all files into `folder`, write the manifest, remove `work`.

    A new set appears by one rename. Into a set that is there files are moved first, which nobody
    reads before the manifest names them.
    """
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
    )
    if made.earlier is None:
        write_manifest(made.staged, _with_statistics(manifest, made.staged))
        if folder.exists():
            folder.rmdir()
        made.staged.rename(folder)
    else:
        _move_in(made.staged, folder)
        write_manifest(folder, _with_statistics(manifest, folder))
        _remove_old_state(folder, made.ingested.generation)
    shutil.rmtree(work)
    return read_manifest(folder)


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
    for path in sorted(staged.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            target = folder / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _remove_old_state(folder: Path, generation: int) -> None:
    for path in (folder / "state").iterdir():
        if path.name != f"g{generation:04d}":
            shutil.rmtree(path)
