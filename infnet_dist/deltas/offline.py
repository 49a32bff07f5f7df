"""Publishes checkpoints that are already there, as `infnet roll` does after its gate."""

import shutil
from functools import partial

from infnet_dist.checkpoint.manifest import read_manifest
from infnet_dist.checkpoint.step_folders import MANIFEST
from infnet_dist.config.publish import PublishConfig
from infnet_dist.deltas.chain import (
    Publication,
    name_of_version,
    newest_chain,
    prune_publications,
    versions,
)
from infnet_dist.deltas.comparing import DifferentModelsError, Link, make_delta
from infnet_dist.deltas.manifest import Identity, identity, states_of
from infnet_dist.io.filesystem import Folder


def publish_checkpoint(
    settings: PublishConfig, checkpoint: Folder, previous: Folder | None
) -> Folder:
    """Publish a checkpoint, as a delta where that leads from the newest publication to it.

    A delta needs the checkpoint that was published last, the same tensors in both, and a chain
    that is shorter than `max_chain`; otherwise the publication is full. Publishing the same
    checkpoint again changes nothing.

    Args:
        settings: where, and in which form.
        checkpoint: the checkpoint.
        previous: the checkpoint that was published before it; None: a full publication.

    Returns:
        The publication.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
    """
    assert settings.folder is not None, "the caller has checked it"
    folder, chain = Folder(settings.folder), list[Publication]()
    if folder.entries():
        chain = newest_chain(folder)
    if chain and identity(read_manifest(checkpoint)) in states_of(chain[-1].manifest):
        return chain[-1].folder
    out = folder / name_of_version(max(versions(folder), default=0) + 1)
    if not _publish_delta(settings, checkpoint, previous, chain, out):
        _copy(checkpoint, out)
    prune_publications(folder, settings.keep)
    return out


def _publish_delta(
    settings: PublishConfig,
    checkpoint: Folder,
    previous: Folder | None,
    chain: list[Publication],
    out: Folder,
) -> bool:
    """Publish a delta if that is possible; returns whether it was."""
    if previous is None or not 0 < len(chain) <= settings.max_chain or not previous.entries():
        return False
    if identity(read_manifest(previous)) not in states_of(chain[-1].manifest):
        return False
    head, last = (
        Identity(name=one.folder.name, digest=identity(one.manifest))
        for one in (chain[0], chain[-1])
    )
    try:
        make_delta(
            previous,
            checkpoint,
            out,
            rows=settings.rows,
            optimizer_state=settings.optimizer_state,
            after=Link(base=head, previous=last, number=len(chain)),
        )
    except DifferentModelsError:
        return False
    return True


def _copy(checkpoint: Folder, out: Folder) -> None:
    """Copy a checkpoint file by file, so that it keeps its identity; its manifest at last."""
    names = [name for name, size in checkpoint.entries().items() if size is not None]
    for name in names:
        if name != MANIFEST:
            with checkpoint.open(name) as file:
                out.create(name, partial(shutil.copyfileobj, file))
    out.put(MANIFEST, checkpoint.read(MANIFEST))
