"""The folder of publications: full ones, each followed by the deltas that change it.

<folder>/
  version-00000001/   full: a checkpoint (manifest.json)
  version-00000002/   a delta of it (delta.json)
  version-00000003/   a delta of version 2
  version-00000004/   full again

A folder without either manifest is being written, or is the rest of an interrupted publication:
readers ignore it, and a later publication deletes it.
"""

import logging
import re
from typing import NamedTuple

from infnet_dist.checkpoint.manifest import CheckpointManifest, UnreadableError, read_manifest
from infnet_dist.checkpoint.step_folders import DELTA_MANIFEST, MANIFEST
from infnet_dist.deltas.manifest import read_delta, states_of
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder

_VERSION = re.compile(r"version-(\d{8,12})")
log = logging.getLogger("infnet_dist")


class InterruptedChainError(CheckpointError):
    """Another run published into the folder: the next publication must be a full one."""


class Publication(NamedTuple):
    """A complete publication; a DeltaManifest makes it a delta."""

    folder: Folder
    manifest: CheckpointManifest


def version_of(name: str) -> int | None:
    """The version of a publication's folder name; None for other names."""
    match = _VERSION.fullmatch(name)
    return int(match[1]) if match else None


def name_of_version(version: int) -> str:
    """The folder name of a publication."""
    return f"version-{version:08d}"


def versions(folder: Folder) -> dict[int, str | None]:
    """By version, ascending, the manifest's file name; None of incomplete ones.

    Raises:
        OSError: the folder can't be listed.
    """
    names = [name for name, size in folder.entries().items() if size is None]
    found = sorted((version, name) for name in names if (version := version_of(name)) is not None)
    return {version: _manifest_in(folder / name) for version, name in found}


def newest_chain(folder: Folder) -> list[Publication]:
    """The newest usable full publication and the deltas of it, in order; empty without any.

    It ends before the first delta that is missing or damaged. If the newest full one is damaged,
    the chain is that of the one before.

    Raises:
        UnreadableError: the storage failed.
    """
    try:
        found = versions(folder)
    except OSError as error:
        raise UnreadableError(f"{folder} can't be listed: {error}") from None
    fulls = [version for version, file in found.items() if file == MANIFEST]
    for full, following in zip(reversed(fulls), [None, *reversed(fulls)], strict=False):
        place = folder / name_of_version(full)
        try:
            chain = [Publication(place, read_manifest(place))]
        except UnreadableError:
            raise
        except CheckpointError as error:
            log.warning("skipped: %s", error)
            continue
        later = [v for v, file in found.items() if file == DELTA_MANIFEST and v > full]
        return chain + _deltas(
            folder, chain[0], [v for v in later if following is None or v < following]
        )
    return []


def _deltas(folder: Folder, head: Publication, later: list[int]) -> list[Publication]:
    """Those of some versions that follow a full publication without a gap."""
    chain, states = [], states_of(head.manifest)
    for version in later:
        place = folder / name_of_version(version)
        try:
            manifest = read_delta(place)
        except UnreadableError:
            raise
        except CheckpointError as error:
            log.warning("the chain ends before a damaged delta: %s", error)
            break
        if manifest.delta.previous.digest not in states:
            log.warning("the chain ends before %s, which changes another publication", place)
            break
        chain.append(Publication(place, manifest))
        states = states_of(manifest)
    return chain


def prune_publications(folder: Folder, keep: int) -> list[Folder]:
    """Delete what is older than the `keep` newest full publications, and interrupted ones.

    A failure is a warning. Only versions below the newest complete one are deleted, so none that is
    being written.
    """
    gone: list[Folder] = []
    try:
        found = versions(folder)
        complete = [version for version, file in found.items() if file]
        fulls = [version for version, file in found.items() if file == MANIFEST]
        oldest = fulls[-keep:][0] if fulls else 0
        for version, file in found.items():
            place = folder / name_of_version(version)
            old = version < oldest if file else version < max(complete, default=0)
            if not old or place.is_link:
                continue
            for manifest in (MANIFEST, DELTA_MANIFEST):
                place.delete(manifest)  # first: if interrupted, the rest is incomplete
            place.delete_all()
            gone.append(place)
    except OSError as error:
        log.warning("can't delete old publications in %s (%s)", folder, error)
    return gone


def _manifest_in(publication: Folder) -> str | None:
    files = publication.entries()
    return next((file for file in (MANIFEST, DELTA_MANIFEST) if files.get(file) is not None), None)
