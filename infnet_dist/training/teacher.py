"""The teacher of a run, the same one after each resume."""

import logging
from pathlib import Path

from infnet_dist.checkpoint import CheckpointManifest
from infnet_dist.config.run import Config
from infnet_dist.errors import ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import write_json
from infnet_dist.training.run_folder import TEACHER, read_init
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.warm_start.source import find_checkpoint
from infnet_dist.warm_start.teacher import KEY, Teacher, load_teacher

log = logging.getLogger("infnet_dist")


def open_teacher(
    setup: TrainingSetup, run_folder: Path, step: int, resumed: CheckpointManifest | None
) -> Teacher | None:
    """Load the teacher of `training.teacher`; every rank calls it.

    Args:
        setup: the run.
        run_folder: gets `teacher.json`.
        step: the next step, from 0.
        resumed: manifest of the run's own checkpoint; None for a new run.

    Returns:
        The teacher; None if no step left has one.

    Raises:
        ConfigError: no step of a new run has the teacher; on all ranks.
        CheckpointError: as of `load_teacher`, or there is no such checkpoint; on all ranks.
        PlanError: as of `load_teacher`.
    """
    context, options = setup.context, setup.config.training.teacher
    if options is None or not options.weight:
        return None
    if not options.is_asked(step):
        if resumed is not None:
            return None
        raise ConfigError(
            f"{KEY}.steps is {options.steps:,}, but the run starts after step {step:,} "
            "(checkpoint.init_from.progress), so no step would have the teacher; steps include "
            "the earlier ones, so set a larger number"
        )
    folder = context.on_first(lambda: _teacher_of(run_folder, setup.config))
    teacher = load_teacher(folder, setup.sharded, setup.manifest, context)
    content = {"requested": options.source, "checkpoint": str(folder)}
    context.on_first(lambda: _record(run_folder, content))
    return teacher


def _teacher_of(run_folder: Path, config: Config) -> Folder:
    """The checkpoint that `source` names; that of the first attempt, if it named the same."""
    assert config.training.teacher is not None
    source = config.training.teacher.source
    earlier = read_init(run_folder, TEACHER)
    if earlier is not None and earlier["requested"] == source:
        return Folder(str(earlier["checkpoint"]))
    return find_checkpoint(source, config, KEY)


def _record(run_folder: Path, content: dict[str, str]) -> None:
    run_folder.mkdir(parents=True, exist_ok=True)
    write_json(run_folder / TEACHER, content)
    log.info("the teacher is %s", content["checkpoint"])
