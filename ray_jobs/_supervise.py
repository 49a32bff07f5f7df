"""Trains a run to its end: restarts it after a worker is lost, with the workers that fit.

Each attempt resumes from the newest checkpoint, so a restart needs nothing else. docs/faults.md
lists what Ray Train does of this, and why the rest is ours.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infnet_dist.checkpoint import newest
from infnet_dist.config.run import Config
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.retries import one_line, retrying
from infnet_dist.training.run_folder import checkpoint_folder
from infnet_dist.training.run_lock import held_by_driver
from infnet_dist.training.trainer import train
from ray_jobs._cluster import connect, submission_id
from ray_jobs._elastic import Growth, workers_of_next_attempt
from ray_jobs._launch import launch
from ray_jobs._shutdown_signals import ShutdownSignals
from ray_jobs._worker_errors import WorkerLostError

log = logging.getLogger("infnet_dist")


def train_with_restarts(config: Config, run_folder: Path, launcher: str) -> dict[str, Any]:
    """Train a run; returns the summary of its last attempt.

    Raises:
        StoppedError: a signal stopped it.
        UserError: bad input, which a restart wouldn't fix; another driver trains the run; or the
            checkpoints can't be listed.
        RuntimeError: an error of the code, or too many failures without a new checkpoint.
    """
    with held_by_driver(run_folder, config.scaling, submission_id()):
        if launcher == "ray":
            connect()  # before our signal handlers: Ray installs its own for SIGTERM
        shutdown = ShutdownSignals(run_folder)
        with shutdown.at_signals():
            return _train_until_done(config, run_folder, launcher, shutdown)


def _train_until_done(
    config: Config, run_folder: Path, launcher: str, shutdown: ShutdownSignals
) -> dict[str, Any]:
    scaling, failures = config.scaling, 0
    while True:
        before = _newest_checkpoint(config, run_folder)
        num_workers = scaling.num_workers
        if launcher == "ray":
            num_workers = workers_of_next_attempt(scaling)
        growth = Growth(scaling, num_workers, run_folder, shutdown)
        shutdown.reset()
        try:
            summary = _attempt(
                config, run_folder, launcher, num_workers, shutdown.file, growth.look
            )
        except WorkerLostError as error:
            after = _newest_checkpoint(config, run_folder, because=f"{error}; ")
            failures = failures + 1 if after == before else 1
            if shutdown.signal is not None:
                raise shutdown.after_loss(error, after) from None
            if failures > scaling.max_failures:
                raise RuntimeError(_too_many(error, failures, config, after)) from None
            log.warning(
                "%s; restarting from %s (%s of %s restarts without a new checkpoint)",
                *(error, after.name if after else "the beginning", failures, scaling.max_failures),
            )
            continue
        if not summary["stopped"]:
            return summary
        if shutdown.signal is not None or not (growth.found or launcher == "ray"):
            raise shutdown.after_saving(summary)
        if not growth.found:
            log.info("saved step %s before a worker is lost; resuming", f"{summary['steps']:,}")
        failures = 0


def _attempt(
    config: Config,
    run_folder: Path,
    launcher: str,
    num_workers: int,
    stop_file: Path,
    while_waiting: Callable[[], None],
) -> dict[str, Any]:
    """One attempt; its error is the watchdog's verdict, if a worker was lost by that."""
    # Of this attempt alone: a worker that is cut off the network may write its own hours later.
    verdict_file = run_folder / f".verdict-{secrets.token_hex(4)}"
    arguments = {
        "config": config,
        "run_folder": run_folder,
        "stop_file": stop_file,
        "verdict_file": verdict_file,
    }
    try:
        summary: dict[str, Any] = launch(
            train,
            arguments,
            config,
            launcher,
            num_workers=num_workers,
            while_waiting=while_waiting,
        )
        return summary
    except WorkerLostError as error:
        if verdict_file.is_file() and (verdict := verdict_file.read_text()):  # empty: a full disk
            raise WorkerLostError(verdict) from error
        raise
    finally:
        verdict_file.unlink(missing_ok=True)


def _newest_checkpoint(config: Config, run_folder: Path, because: str = "") -> Folder | None:
    """The newest complete checkpoint; storage that is unavailable is tried again for a while.

    Args:
        config: the run.
        run_folder: its folder.
        because: what made it necessary, for the error.

    Raises:
        CheckpointError: the storage remains unavailable, or its place is wrong.
    """
    place = checkpoint_folder(config, run_folder)

    def warn(error: BaseException, wait_s: float) -> None:
        log.warning("%s can't be listed (%s); retrying in %.1f s", place, one_line(error), wait_s)

    try:
        return retrying(config.checkpoint.retry_s, _may_pass, before_retry=warn)(newest, place)
    except OSError as error:
        raise CheckpointError(
            f"{because}the checkpoints in {place} can't be listed ({error}); once they can, the "
            "same --run-id resumes"
        ) from None


def _may_pass(error: BaseException) -> bool:
    """Whether waiting may help, which it doesn't where the place is wrong."""
    wrong = isinstance(error, PermissionError | NotADirectoryError)
    return isinstance(error, OSError) and not wrong


def _too_many(error: Exception, failures: int, config: Config, after: Folder | None) -> str:
    """The message of a run that failed too often."""
    return (
        f"{error}; that was failure {failures} since the last new checkpoint "
        f"(scaling.max_failures is {config.scaling.max_failures}); the same --run-id resumes from "
        f"{after or 'the beginning'}"
    )
