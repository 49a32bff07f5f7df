"""Logs -> a training set, or more of one: all stages in order, then all of it into its place.

my_set/
manifest.json              written last
train/ valid/ test/        parts; those of later ingests stand beside the first ones
vocabulary/<table>/        a version of each ingest
quarantine/                bad rows with their reasons, by ingest
state/                     what adding later logs needs
report.html                what the logs look like, with plots
"""

import shutil
from pathlib import Path

from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.extend import check_extension, earlier_set, new_files
from infnet_dist.ingest.logs.job import Job, plan_of
from infnet_dist.ingest.logs.publish import publish
from infnet_dist.ingest.logs.source import list_files
from infnet_dist.ingest.logs.stages import Execute, Progress, Stages
from infnet_dist.ingest_config import LogsIngest


def ingest_logs(
    config: LogsIngest, folder: Path, execute: Execute, progress: Progress
) -> Manifest | None:
    """Bring the training set at `folder` up to date with the logs at `config.path`.

    Without a training set one is made; if there are new files, their rows are added to it; else
    nothing happens. A killed run leaves the set as it was, and the next one goes on where it was.

    Args:
        config: the logs and what to make of them.
        folder: the training set, on storage that all workers share.
        execute: runs tasks.
        progress: told after each task: stage, rows (or tasks) done, all of them.

    Returns:
        The manifest; None if there was nothing to do.

    Raises:
        DataError: logs are missing, unreadable, or too many of their rows are bad; or the set was
            made from other settings.
        ConfigError: the roles of columns don't agree.
    """
    earlier = earlier_set(config, folder)
    files = new_files(list_files(config), earlier)
    if not files:
        return None
    if earlier is not None:
        check_extension(config, earlier, folder)
    work = folder.with_name(f".{folder.name}.work")
    try:
        _prepare(work, plan_of(config, files, earlier))
        stages = Stages(work / "done", execute, progress)
        job = Job(config, stages, work, folder, earlier)
        made = job.run(files)
        return publish(made, folder, work)
    except OSError as error:
        raise DataError(
            f"can't write {error.filename or work} ({error.strerror or error}); free space or mend "
            "the permissions, then run the same command again: it goes on where it stopped"
        ) from None


def _prepare(work: Path, plan: str) -> None:
    """Keep what an interrupted run of the same plan has done; start anew otherwise."""
    noted = work / "plan.json"
    if noted.is_file() and noted.read_text() == plan:
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    noted.write_text(plan)
