"""Retention of a run's checkpoints: the newest, the best and every n-th are kept."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from infnet_dist.checkpoint.discovery import FoundCheckpoint
from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    RenamedError,
    UnreadableError,
    read_manifest,
)
from infnet_dist.checkpoint.step_folders import MANIFEST, complete_checkpoints, step_of
from infnet_dist.config.run import CheckpointConfig
from infnet_dist.errors import CheckpointError, unknown_name
from infnet_dist.evaluation.metrics import higher_is_better
from infnet_dist.io.filesystem import Folder

_QUIET_NS = 3_600 * 10**9  # an incomplete checkpoint with newer files may become complete
log = logging.getLogger("infnet_dist")


@dataclass(frozen=True)
class RetentionDecision:
    """Whether a checkpoint is kept, and the reason."""

    found: FoundCheckpoint
    kept: bool
    reason: str


def decide_retention(
    found: Sequence[FoundCheckpoint],
    config: CheckpointConfig,
    *,
    now_ns: int,
    delete_damaged: bool = False,
) -> list[RetentionDecision]:
    """Decide which checkpoints `config` keeps, in their order, while no run is training.

    Damaged checkpoints don't count as kept. Unreadable and renamed ones are kept, and so are links:
    nothing is deleted through a link.

    Raises:
        CheckpointError: none is complete, or none has the metric of `keep_best`.
        UnreadableError: the storage failed, so the best one isn't known.
    """
    complete = [one.folder for one in found if one.manifest is not None]
    if not complete:
        raise CheckpointError(
            "no checkpoint is complete: nothing is deleted; `verify` lists the faults"
        )
    metrics = {name for one in found if one.manifest for name in one.manifest.metrics}
    if config.keep_best is not None and config.keep_best not in metrics:
        raise CheckpointError(unknown_name("metric", config.keep_best, metrics))
    kept = to_keep(complete, config)
    newest = set(complete[-config.keep_last :])
    every = config.keep_every_steps
    decided = []
    for one in found:
        if one.folder.is_link:
            decided.append(RetentionDecision(one, True, "a link"))
        elif one.state == "complete":
            if one.folder in newest:
                reason = "newest" if config.keep_last == 1 else f"of the newest {config.keep_last}"
            elif every and one.step % every == 0:
                reason = f"multiple of {every:,} steps"
            else:
                reason = f"best {config.keep_best}" if one.folder in kept else "not needed"
            decided.append(RetentionDecision(one, one.folder in kept, reason))
        elif one.state == "incomplete":
            old = now_ns - one.written_ns > _QUIET_NS
            reason = "incomplete" if old else "incomplete; possibly being written"
            decided.append(RetentionDecision(one, not old, reason))
        else:
            goes = one.state == "damaged" and delete_damaged
            decided.append(RetentionDecision(one, not goes, one.state))
    return decided


def prune(
    folder: Folder,
    config: CheckpointConfig,
    *,
    newest: Folder,
    manifest: CheckpointManifest,
    damaged: Collection[str] = (),
) -> list[Folder]:
    """Delete the checkpoints in `folder` that `config` doesn't keep, once `newest` is complete.

    Leftovers of earlier attempts are deleted too: folders without a manifest, files of `newest`
    that its `manifest` doesn't name, `damaged` checkpoints, which don't count as kept, and
    checkpoints of later steps, which were damaged when the run resumed from an earlier one. A
    failed deletion is a warning and is retried next time; if the storage fails before the best one
    is known, nothing is deleted. Links and renamed folders are kept.

    Returns:
        The deleted folders.
    """
    gone: list[Folder] = []
    try:
        last = step_of(newest.name) or 0
        there = [found for found in complete_checkpoints(folder) if found.name not in damaged]
        complete = [found for found in there if (step_of(found.name) or 0) <= last]
        kept = {found.name for found in to_keep(complete, config)} | {newest.name}
        known = {*manifest.files, *manifest.tensor_files, MANIFEST}
        for name in sorted(newest.entries().keys() - known) if not newest.is_link else ():
            newest.delete(name)
        for name, size in folder.entries().items():
            if size is not None or step_of(name) is None or name in kept:
                continue
            if not ((folder / name).is_link or _is_renamed(folder / name)):
                gone += [folder / name] if _deleted(folder / name) else []
    except (OSError, UnreadableError) as error:
        log.warning("can't delete old checkpoints in %s (%s)", folder, error)
    return gone


def _is_renamed(checkpoint: Folder) -> bool:
    """Whether the folder holds a checkpoint of a step other than in its name."""
    try:
        read_manifest(checkpoint)
    except RenamedError:
        return True
    except CheckpointError:
        pass
    return False


def _deleted(checkpoint: Folder) -> bool:
    """Delete a checkpoint; returns whether it worked. A failure is a warning."""
    try:
        delete(checkpoint)
    except OSError as error:
        log.warning("can't delete the old checkpoint %s (%s)", checkpoint, error)
        return False
    return True


def delete(checkpoint: Folder) -> None:
    """Delete a checkpoint, its manifest first: if interrupted, the rest is incomplete.

    Raises:
        CheckpointError: it is a link.
        OSError: a part of it can't be deleted.
    """
    if checkpoint.is_link:
        raise CheckpointError(f"{checkpoint} is a link: nothing is deleted through it")
    checkpoint.delete(MANIFEST)
    checkpoint.delete_all()


def to_keep(complete: list[Folder], config: CheckpointConfig) -> list[Folder]:
    """The complete checkpoints, oldest first, that the config keeps."""
    every, metric = config.keep_every_steps, config.keep_best
    kept = set(complete[-config.keep_last :])
    kept |= {found for found in complete if every and (step_of(found.name) or 0) % every == 0}
    best = best_of(complete, metric) if metric else None
    return [found for found in complete if found in kept or found == best]


def best_of(complete: list[Folder], metric: str) -> Folder | None:
    """The checkpoint with the best value of a metric; None if none was evaluated.

    Raises:
        UnreadableError: the storage failed, so any of them may be the best.
    """
    scores: list[tuple[float, Folder]] = []
    for found in complete:
        try:
            value = read_manifest(found).metrics.get(metric)
        except UnreadableError:
            raise
        except CheckpointError:
            continue  # a damaged one can't be the best
        if value is not None:
            scores.append((value if higher_is_better(metric) else -value, found))
    return max(scores, key=lambda scored: scored[0])[1] if scores else None
