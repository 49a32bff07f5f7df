"""The training set as a run began with it: a resumed run reads the same rows, although it grew.

`training_set/manifest.json` in the run folder is a copy of the manifest. Later ingests add parts
and change no existing one, so the copy describes the set of that time.
"""

import logging
from pathlib import Path

from infnet_dist.checkpoint import complete_checkpoints, read_manifest
from infnet_dist.config.run import Config
from infnet_dist.data import manifest as data_manifest
from infnet_dist.data.manifest import MANIFEST, Manifest, write_manifest
from infnet_dist.data.window.replay import replay_rows
from infnet_dist.data.window.selection import generations_of, window_text
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.run_folder import checkpoint_folder
from infnet_dist.training.setup import TrainingSetup

_FOLDER = "training_set"
log = logging.getLogger("infnet_dist")


def manifest_of_run(config: Config, run_folder: Path) -> Manifest:
    """The manifest that a run reads: the training set's, or the one that the run began with.

    A run with `data.window` keeps what it began with. A run without reads all rows; if logs were
    added, it takes them when it resumes between epochs, but completes an epoch that it has begun.

    Raises:
        DataError: the training set, or the copy, is missing or malformed.
    """
    now = data_manifest.read_manifest(config.data.path)
    if not (run_folder / _FOLDER / MANIFEST).is_file():
        return now
    begun = data_manifest.read_manifest(run_folder / _FOLDER)
    grew_from = now.ingested.grew_from if now.ingested is not None else ()
    if begun.content_hash not in grew_from:
        return now  # the same, or a replaced one, which is refused with the checkpoint
    checkpoints = checkpoint_folder(config, run_folder)
    if config.data.window is None and not _within_epoch(checkpoints, begun.content_hash):
        return now
    return begun


def keep_manifest(run_folder: Path, manifest: Manifest) -> None:
    """Keep the manifest that an attempt reads."""
    folder = run_folder / _FOLDER
    there = (folder / MANIFEST).is_file()
    if there and data_manifest.read_manifest(folder).content_hash == manifest.content_hash:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, manifest)


def log_window(setup: TrainingSetup, whole: Manifest) -> None:
    """Log which rows the run reads, if not all, and warn where that may surprise.

    Args:
        setup: of the run.
        whole: manifest of the training set, with all parts of train.
    """
    data, replay = setup.config.data, setup.replay
    if data.window is None:
        return
    log.info("%s", window_text(setup.manifest, whole))
    newest = whole.ingested.generation if whole.ingested is not None else 1
    if data.window.new and newest > setup.order.generations[-1]:
        log.warning(
            "data.window: the newest ingest, generation %s, added no rows to train; move "
            "ingest.valid_from, so that rows of valid become train",
            newest,
        )
    if replay is None:
        return
    rows = setup.manifest.split("train").rows
    wanted = replay_rows(rows, data.replay_share)
    log.info(
        "data.replay_share %s: %s rows of generations %s in each epoch",
        *(data.replay_share, f"{replay.rows:,}"),
        ", ".join(map(str, generations_of(replay.parts))),
    )
    if replay.rows < wanted:
        log.warning(
            "data.replay_share: %s older rows are too few for a share of %s (%s), so it is %.3f",
            *(f"{replay.rows:,}", data.replay_share, f"{wanted:,}"),
            replay.rows / (replay.rows + rows),
        )


def _within_epoch(checkpoints: Folder, content_hash: str) -> bool:
    """Whether the newest readable checkpoint is from within an epoch of this content."""
    try:
        found = complete_checkpoints(checkpoints)
    except OSError:
        return False  # loading reports it
    for folder in reversed(found):
        try:
            saved = read_manifest(folder)
        except CheckpointError:
            continue
        return bool(saved.progress.consumed) and saved.order.content_hash == content_hash
    return False
