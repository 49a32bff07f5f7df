"""Checks that a run may resume on a training set: the same set, or the same set after it grew.

A set grows when `ingest` adds later logs to it: ids and parts stay unchanged. All other changes are
refused. `begun_set.py` decides which parts of a set that grew a run reads.
"""

from pathlib import Path

from infnet_dist.checkpoint import CheckpointManifest, DataOrder
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.errors import CheckpointError, DataError
from infnet_dist.training.setup import TrainingSetup


def check_resumable(
    saved: CheckpointManifest, now: DataOrder, manifest: Manifest, *, rows: int | None = None
) -> str:
    """Check that a run may resume from a checkpoint with this training set.

    Within an epoch the selected rows and their order must be the same. Between epochs the set may
    have grown. A set that grew is the same where the selected parts are equal.

    Args:
        saved: the checkpoint's manifest.
        now: the order of rows in this attempt.
        manifest: what the run reads of the training set.
        rows: number of rows of an epoch; None: those of train.

    Returns:
        How the set grew, as text; empty if it didn't.

    Raises:
        CheckpointError: it is another set, or another order; or the checkpoint consumed more rows
            than it has.
    """
    step, consumed = saved.progress.step, saved.progress.consumed
    grew = manifest.grew_from(saved.order.content_hash)
    different = _differences(saved.order, now, content_only=not consumed, grew=grew)
    if different and not consumed and grew:
        return f"since step {step:,} {_growth(manifest)}; the next epoch reads all of them"
    if different:
        where = f"step {step:,} was saved {'within' if consumed else 'after'} an epoch"
        raise CheckpointError(
            f"{where} of other data: {'; '.join(different)}; restore the earlier values, or start "
            "a new run with another --run-id"
        )
    rows = manifest.split("train").rows if rows is None else rows
    if consumed and consumed[-1][1] > rows:
        raise CheckpointError(
            f"step {step:,} has read row {consumed[-1][1]:,} of the epoch's order, which has "
            f"{rows:,} rows; start a new run with another --run-id"
        )
    return ""


def check_unchanged(setup: TrainingSetup) -> str:
    """Check that the training set is still the set that this attempt opened.

    Returns:
        How it grew since, as text; empty if it didn't.

    Raises:
        DataError: it is another set, or is missing.
    """
    folder, mine = setup.config.data.path, setup.manifest.content_hash
    found = read_manifest(folder)
    if found.content_hash == mine:
        return ""
    if found.grew_from(mine):
        return (
            f"{_growth(found)}; this attempt continues with the "
            f"{setup.manifest.split('train').rows:,} that it began with"
        )
    raise DataError(
        f"{folder} was replaced while the run read it: content {_short(mine)} when it began, "
        f"{_short(found.content_hash)} now; put the set back, or start a new run with another "
        "--run-id"
    )


def check_content(folder: Path, content_hash: str) -> None:
    """Check that a training set has this content hash.

    Raises:
        DataError: it has another hash, or is missing.
    """
    found = read_manifest(folder).content_hash
    if found != content_hash:
        raise DataError(
            f"{folder} has content {_short(found)}, {_short(content_hash)} expected: it changed "
            "since the first trial; restore the set, or start a new comparison"
        )


def warning_of_other_data(saved: CheckpointManifest, manifest: Manifest) -> str:
    """The warning to log before a checkpoint is evaluated on this set; empty if there is none."""
    before = saved.order.content_hash
    if before == manifest.content_hash or manifest.grew_from(before):
        return ""
    return (
        f"the checkpoint was trained on another training set (content {_short(before)}, here "
        f"{_short(manifest.content_hash)}): its ids may mean something else here"
    )


def _differences(saved: DataOrder, now: DataOrder, *, content_only: bool, grew: bool) -> list[str]:
    """The keys in which two orders of rows differ, one text each.

    Args:
        saved: the checkpoint's order.
        now: this attempt's.
        content_only: whether to compare the rows alone.
        grew: whether the training set grew from the checkpoint's.
    """
    found = []
    same_rows = grew and saved.identity == now.identity
    if saved.content_hash != now.content_hash and not same_rows:
        there, here = _short(saved.content_hash), _short(now.content_hash)
        found.append(f"the training set has content {there} there, {here} here")
    elif saved.identity and saved.identity != now.identity:
        found.append(
            "the selected rows (data.window, data.valid_from, data.replay_share), features or "
            "tasks, or parts of the training set, changed under the same content hash"
        )
    if content_only:
        return found
    for key, name in _ORDER_KEYS.items():
        there, here = getattr(saved, key), getattr(now, key)
        if there != here:
            found.append(f"{name} is {there} there, {here} here")
    return found


_ORDER_KEYS = {
    "seed": "run.seed",
    "shuffle_rows": "data.shuffle_rows",
    "version": "the version of the order",
    "replay_share": "data.replay_share",
}


def _growth(manifest: Manifest) -> str:
    rows = ", ".join(f"{split.rows:,} rows of {name}" for name, split in manifest.splits.items())
    return f"logs were added to the training set, which now has {rows}"


def _short(content_hash: str) -> str:
    return content_hash[:12]
