"""The model of a checkpoint, for the jobs that only read it: evaluate, predict and export."""

import argparse
from collections.abc import Sequence

from infnet_dist import checkpoint
from infnet_dist.checkpoint.discovery import open_checkpoint
from infnet_dist.checkpoint.inspection import read_plain
from infnet_dist.config.changes import changes
from infnet_dist.config.overrides import covers, key_of
from infnet_dist.config.run import Config, config_of_text
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.data.schema_changes import adapt_schema, summary_of
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.paths import resolve_place
from infnet_dist.schema import Schema
from infnet_dist.training.data_changes import warning_of_other_data
from infnet_dist.training.evaluation import check_readable_set
from infnet_dist.training.setup import open_training_set
from ray_jobs._cli import log, newest_checkpoint

_MAKES_MODEL = ("model", "tables", "data.features", "data.tasks", "data.crosses")
# Keys that these jobs take from the run file.
_FROM_RUN_FILE = (
    *("run.folder", "run.name", "checkpoint.folder", "scaling", "sharding", "data.path"),
    *("data.batch_size", "data.prefetch_batches", "data.max_bad_row_groups", "data.reader"),
    "data.valid_from",
)


def checkpoint_of(config: Config, arguments: argparse.Namespace) -> Folder:
    """The checkpoint of --checkpoint, or the newest of a run.

    Raises:
        CheckpointError: there is none, or --checkpoint is a folder of several.
    """
    if not arguments.checkpoint:
        return newest_checkpoint(config, arguments.run_id)
    try:
        return open_checkpoint(resolve_place(arguments.checkpoint))[0]
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --run-id takes the newest of a run") from None


def open_readable_set(config: Config, path: Folder) -> tuple[Manifest, Schema]:
    """The training set as the checkpoint's model reads it; logs how the set differs.

    Raises:
        CheckpointError: it is damaged, or its model can't; names features, tables and tasks.
        DataError: the training set is malformed.
    """
    saved = checkpoint.read_manifest(path)
    trained = checkpoint.read_schema(path, saved)
    manifest = read_manifest(config.data.path)
    check_readable_set(path, config, saved, trained, manifest)
    here = manifest.schema_
    manifest, schema = open_training_set(config, trained)
    if trained is not None and (notes := adapt_schema(trained, here).notes):
        log.info(
            "the training set differs; the model's own settings are used: %s", summary_of(notes)
        )
    if warning := warning_of_other_data(saved, manifest):
        log.warning("%s: %s", config.data.path, warning)
    return manifest, schema


def saved_config(folder: Folder) -> Config:
    """The config that a checkpoint was saved with."""
    content = read_plain(folder, checkpoint.read_manifest(folder), "config.yaml")
    if content is None:
        raise CheckpointError(f"{folder} has no config.yaml, which describes its model")
    return config_of_text(content.decode(), source=f"{folder}/config.yaml")


def with_model_of(config: Config, saved: Config, overrides: Sequence[str], verb: str) -> Config:
    """The config with the checkpoint's settings of the model.

    Args:
        config: the run file.
        saved: the checkpoint's.
        overrides: keys of the run file that were set explicitly.
        verb: of the job.

    Raises:
        ConfigError: --set of a key that the job takes from the checkpoint or doesn't use, to
            another value than the checkpoint's.
    """
    keys = [key_of(override) for override in overrides]
    for key, (theirs, ours) in changes(saved, config).items():
        if any(covers(here, key) for here in _FROM_RUN_FILE):
            continue
        if any(covers(one, key) for one in keys):
            raise ConfigError(
                f"--set {key}: got {ours}, but the checkpoint was trained with {theirs}, and "
                f"{verb} takes this key from the checkpoint; leave it out"
            )
        if any(covers(part, key) for part in _MAKES_MODEL):
            log.warning(
                "%s is %s as in the checkpoint, not %s as in the run file", key, theirs, ours
            )
    data = {key: getattr(saved.data, key) for key in ("features", "tasks", "crosses")}
    return config.model_copy(
        update={
            "model": saved.model,
            "tables": saved.tables,
            "data": config.data.model_copy(update=data),
        }
    )
