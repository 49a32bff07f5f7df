"""The state from which a run begins: its own checkpoint, another run's, or random values."""

import logging
from pathlib import Path

from infnet_dist.checkpoint import CheckpointManifest, SavedProgress, newest
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.console import Line
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import write_json
from infnet_dist.planning.review.render import summary_lines
from infnet_dist.training.run_folder import INIT, checkpoint_folder, read_init
from infnet_dist.training.setup import TrainingSetup, open_for_training
from infnet_dist.warm_start.report import WarmStart
from infnet_dist.warm_start.source import find_checkpoint
from infnet_dist.warm_start.start import warm_start

log = logging.getLogger("infnet_dist")


def initialise(
    setup: TrainingSetup, run_folder: Path, resumed: CheckpointManifest | None
) -> SavedProgress:
    """Start from `checkpoint.init_from` unless the run resumed; every rank calls it.

    Args:
        setup: the run; its model has random values, or those of `resumed`.
        run_folder: gets `init.json`.
        resumed: manifest of the run's own checkpoint, which is loaded.

    Returns:
        The progress from which the run continues.

    Raises:
        CheckpointError: as of `warm_start`; the run folder is unchanged.
    """
    context, options = setup.context, setup.config.checkpoint.init_from
    if resumed is not None:
        if options is not None and context.is_first:
            log.info(
                "checkpoint.init_from is ignored: the run resumes from its own step %s",
                f"{resumed.progress.step:,}",
            )
        return resumed.progress
    if options is None:
        context.on_first(lambda: (run_folder / INIT).unlink(missing_ok=True))
        return SavedProgress()
    folder = context.on_first(lambda: origin_of(run_folder, setup.config))
    found = warm_start(folder, setup.sharded, setup.manifest, context, options=options)
    context.on_first(lambda: _record(found, run_folder))
    if not options.progress:
        return SavedProgress()
    return SavedProgress(step=found.step, examples=found.examples)


def origin_of(run_folder: Path, config: Config) -> Folder:
    """The checkpoint that `checkpoint.init_from` names.

    An attempt that was lost before its first checkpoint begins again from the same one, even if
    that run has saved others since.

    Raises:
        CheckpointError: there is none.
    """
    assert config.checkpoint.init_from is not None
    source = config.checkpoint.init_from.source
    earlier = read_init(run_folder)
    if earlier is not None and earlier["requested"] == source:
        return Folder(str(earlier["checkpoint"]))
    return find_checkpoint(source, config)


def _record(found: WarmStart, run_folder: Path) -> None:
    run_folder.mkdir(parents=True, exist_ok=True)
    write_json(run_folder / INIT, found.to_json())
    for line in found.lines():
        log.info(line)


def dry_run(context: WorkerContext, config: Config, *, run_folder: Path) -> list[str]:
    """Log the plan and what a run would start from; trains and writes nothing.

    Returns:
        The lines.

    Raises:
        UserError: as in training.
    """
    splits = ("train", "valid")
    setup = TrainingSetup.open(config, context, splits=splits, open_set=open_for_training)
    own = context.on_first(lambda: newest(checkpoint_folder(config, run_folder)))
    lines: list[Line | str] = [*summary_lines(setup.sharded.plan)]
    options = config.checkpoint.init_from
    if own is not None:
        ignored = "; checkpoint.init_from is ignored" if options else ""
        lines.append(f"the run would resume from its own checkpoint {own}{ignored}")
    elif options is None:
        lines.append("the run would start from random values")
    else:
        folder = context.on_first(lambda: origin_of(run_folder, config))
        found = warm_start(
            folder, setup.sharded, setup.manifest, context, options=options, dry_run=True
        )
        lines += found.lines()
    for line in lines if context.is_first else ():
        log.info(line)
    return [str(line) for line in lines]
