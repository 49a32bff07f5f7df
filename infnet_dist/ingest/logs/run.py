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
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Manifest
from infnet_dist.ingest.coverage import warn_of_unknown
from infnet_dist.ingest.listing import tell_left_out
from infnet_dist.ingest.lock import alone
from infnet_dist.ingest.logs.context import Workplace
from infnet_dist.ingest.logs.extend import check_extension, earlier_set, known_files, new_files
from infnet_dist.ingest.logs.fragments import list_files
from infnet_dist.ingest.logs.job import run_job
from infnet_dist.ingest.logs.plan import plan_of
from infnet_dist.ingest.logs.publish import is_made, note_made, publish, remove_unnamed
from infnet_dist.ingest.logs.shuffle_files import renamed
from infnet_dist.ingest.logs.stages import Execute, Progress, Stages, as_data_error
from infnet_dist.ingest.target import resolve_target
from infnet_dist.io.filesystem import open_filesystem


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
        progress: told after each task.

    Returns:
        The manifest; None if there was nothing to do.

    Raises:
        DataError: logs are missing, unreadable, or too many of their rows are bad; or the set was
            made from other settings; or another ingest is at work on it; or nothing can be
            renamed to the folder.
        ConfigError: the roles of columns don't agree.
    """
    folder = resolve_target(folder)
    work = folder.with_name(f".{folder.name}.work")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            return _ingest(config, folder, work, Stages(work / "done", execute, progress))
    except OSError as error:
        raise as_data_error(error, work) from None


def _ingest(config: LogsIngest, folder: Path, work: Path, stages: Stages) -> Manifest | None:
    earlier = earlier_set(config, folder)
    found = list_files(config, known_files(earlier))
    if isinstance(open_filesystem(config.path)[0], pa.fs.LocalFileSystem):
        found = found.without(folder, "it lies in the training set itself")
    tell_left_out(found.left_out)
    new = replace(found, files=new_files(found.files, earlier))
    if not new.files:
        shutil.rmtree(work, ignore_errors=True)  # of a job killed after its last rename
        return None
    if earlier is not None:
        check_extension(config, earlier, folder)
    _prepare(work, folder, plan_of(config, new.files, earlier), earlier)
    if not is_made(work):
        made = run_job(Workplace(config, stages, work, folder, earlier), new)
        if made is None:
            shutil.rmtree(work)
            return None
        note_made(made, work)
    manifest = publish(work, folder)
    warn_of_unknown(manifest)
    return manifest


def _prepare(work: Path, folder: Path, plan: str, earlier: Manifest | None) -> None:
    """Keep what an interrupted run of the same plan has done; start anew otherwise."""
    noted = work / "plan.json"
    if noted.is_file() and noted.read_text() == plan:
        return
    if work.exists():
        shutil.rmtree(work)
    if earlier is not None:
        remove_unnamed(folder, earlier)
    work.mkdir(parents=True)
    with renamed(noted) as path:
        path.write_text(plan)
