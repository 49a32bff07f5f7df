"""Which checkpoint `checkpoint.init_from.source`, or that of a teacher, names.

latest                      of the runs of this name under run.folder, that saved last
latest/20261122-111407      one run
/runs/latest/1, s3://b/x    folder or URL of a run, of its checkpoints, or of one checkpoint
...@newest, @best, @500     which checkpoint of a run; the newest by default
"""

import re

from infnet_dist.checkpoint.discovery import checkpoints_folder, is_checkpoint
from infnet_dist.checkpoint.manifest import read_manifest
from infnet_dist.checkpoint.retention import best_of
from infnet_dist.checkpoint.step_folders import MANIFEST, complete_checkpoints, name_of, step_of
from infnet_dist.checkpoint.trained_optimizers import read_config
from infnet_dist.config.run import Config
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder

_CHOICE = re.compile(r"(.+)@(newest|best|\d{1,12})")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def find_checkpoint(source: str, config: Config, key: str = "checkpoint.init_from") -> Folder:
    """The folder of the one checkpoint that `source` names; its content isn't checked.

    Args:
        source: see above.
        config: the run that starts from it; gives the folder of runs.
        key: of the source in the config, for messages.

    Raises:
        CheckpointError: there is no such run or checkpoint.
    """
    match = _CHOICE.fullmatch(source)
    place, choice = (match[1], match[2]) if match else (source, None)
    try:
        if place.startswith("/") or "://" in place:
            folder = Folder(place)
            if is_checkpoint(folder):
                return _one(folder, choice)
            return _choose(checkpoints_folder(place), choice or "newest", config)
        return _choose(_checkpoints_of_run(place, config), choice or "newest", config)
    except OSError as error:
        raise CheckpointError(f"{key}: {Folder(place)} can't be listed: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from None


def _one(folder: Folder, choice: str | None) -> Folder:
    if choice is not None:
        raise CheckpointError(f"{folder} is one checkpoint; remove @{choice}")
    return folder


def _checkpoints_of_run(name: str, config: Config) -> Folder:
    """The folder of the checkpoints of a run, or of the one of several that saved last."""
    if not _RUN.fullmatch(name):
        raise CheckpointError(
            f"got {name!r}, expected a run (NAME or NAME/RUN-ID), a path that begins with / or ./, "
            "or a URL"
        )
    run, _, run_id = name.partition("/")
    parents = [(Folder(config.run.folder) / run, "checkpoints")]
    if config.checkpoint.folder is not None:
        parents.append((Folder(config.checkpoint.folder) / run, ""))
    found = []
    for parent, below in parents:
        ids = [run_id] if run_id else [n for n, size in parent.entries().items() if size is None]
        for one in ids:
            folder = parent / one / below if below else parent / one
            if complete := complete_checkpoints(folder):
                found.append((complete[-1].modified_ns(MANIFEST), one, folder))
    if not found:
        where = " or ".join(str(parent) for parent, _ in parents)
        raise CheckpointError(
            f"no complete checkpoint of run {name!r} in {where}; name another run, or pass a path"
        )
    return max(found, key=lambda one: one[:2])[2]


def _choose(folder: Folder, choice: str, config: Config) -> Folder:
    complete = complete_checkpoints(folder)
    if not complete:
        raise CheckpointError(f"no complete checkpoint in {folder}")
    if choice == "newest":
        return complete[-1]
    if choice == "best":
        return _best(folder, complete, config)
    chosen = [found for found in complete if step_of(found.name) == int(choice)]
    if not chosen:
        steps = ", ".join(str(step_of(found.name)) for found in complete)
        raise CheckpointError(
            f"no complete checkpoint {name_of(int(choice))} in {folder}, which has steps {steps}"
        )
    return chosen[0]


def _best(folder: Folder, complete: list[Folder], config: Config) -> Folder:
    """The best by the metric of `keep_best`, this run's or else that run's."""
    metric = config.checkpoint.keep_best
    if metric is None:
        theirs = read_config(complete[-1], read_manifest(complete[-1]))
        metric = theirs.checkpoint.keep_best if theirs else None
    if metric is None:
        raise CheckpointError("@best needs a metric; set checkpoint.keep_best, or choose a step")
    best = best_of(complete, metric)
    if best is None:
        raise CheckpointError(f"no checkpoint in {folder} was evaluated by {metric}; choose a step")
    return best
