"""Trains a run to its end: starts it again after a worker is lost, with the workers that fit.

Every attempt goes on from the newest checkpoint, so starting again needs no more than that. A stop
(Ctrl-C, SIGTERM, `ray job stop`) reaches the workers by a file in the run's folder: they save at
the end of their step, and the run goes on from there when it is started again.
"""

import logging
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from infnet_dist.checkpoint import newest
from infnet_dist.config.run import Config
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.retries import one_line, retrying
from infnet_dist.training.run_folder import checkpoint_folder, opened_at
from infnet_dist.training.run_lock import held_by_driver
from infnet_dist.training.trainer import train
from ray_jobs._cli import StoppedError
from ray_jobs._cluster import connect, submission_id
from ray_jobs._launch import launch, workers_that_fit
from ray_jobs._local import WorkerLostError

_LOOK_S = 5.0  # between looks for nodes that came back
_FEWER_AFTER_S = 20.0  # that a node has to come back before the run goes on with fewer workers
_TOO_FEW_AFTER_S = 180.0  # that there may be room for less than scaling.min_workers
log = logging.getLogger("infnet_dist")


def train_to_the_end(config: Config, run_folder: Path, launcher: str) -> dict[str, Any]:
    """Train; the summary of the attempt that came to the end.

    Raises:
        StoppedError: somebody stopped it; it has saved.
        UserError: bad input, which another attempt wouldn't fix; another driver trains the run; or
            the checkpoints stay away.
        RuntimeError: it failed too often without a new checkpoint in between, or by an error of
            the code.
    """
    with held_by_driver(run_folder, config.scaling, submission_id()):
        if launcher == "ray":
            connect()  # before our handlers: Ray takes SIGTERM for itself
        return _train_held(config, run_folder, launcher)


def _train_held(config: Config, run_folder: Path, launcher: str) -> dict[str, Any]:
    """Train a run that this driver holds."""
    stop = _Stop(run_folder)
    failures = 0
    with stop.by_signals():
        while True:
            before = _newest(config, run_folder)
            own = _with_workers_that_fit(config, launcher)
            grow = _Growth(config, own, launcher, stop, run_folder)
            stop.clear()
            try:
                summary = _attempt(own, run_folder, launcher, grow, stop.file)
            except WorkerLostError as error:
                after = _newest(config, run_folder, because=f"{error}; ")
                failures = failures + 1 if after == before else 1
                if stop.asked_by is not None:
                    raise stop.cut_short(error, after) from None
                if failures > config.scaling.max_failures:
                    raise RuntimeError(_final(error, failures, config, after)) from None
                log.warning(
                    "%s; starting again from %s (%s of %s restarts without a new checkpoint)",
                    *(error, after.name if after else "the beginning", failures),
                    config.scaling.max_failures,
                )
                continue
            if not summary["stopped"]:
                return summary
            if stop.asked_by is not None or not grow.wanted:
                raise stop.done(summary)
            failures = 0


def _newest(config: Config, run_folder: Path, because: str = "") -> Folder | None:
    """The newest complete checkpoint; storage that is away is waited for.

    Args:
        config: the run.
        run_folder: its folder.
        because: what made somebody ask, for the error.

    Raises:
        CheckpointError: it stays away, or its place is wrong.
    """
    folder = checkpoint_folder(config, run_folder)

    def warn(error: BaseException, wait_s: float) -> None:
        log.warning("%s can't be listed (%s); retrying in %.1f s", folder, one_line(error), wait_s)

    try:
        return retrying(config.checkpoint.retry_s, _may_pass, before_retry=warn)(newest, folder)
    except OSError as error:
        raise CheckpointError(
            f"{because}the checkpoints in {folder} can't be listed "
            f"({error}); when they can, the same --run-id goes on"
        ) from None


def _may_pass(error: BaseException) -> bool:
    """Whether waiting may help; a place that is wrong stays so."""
    wrong = isinstance(error, PermissionError | NotADirectoryError)
    return isinstance(error, OSError) and not wrong


def _attempt(
    config: Config, run_folder: Path, launcher: str, grow: "_Growth", stop_file: Path
) -> dict[str, Any]:
    """One attempt; what the watchdog found out, if a worker is lost."""
    # Of this attempt alone: a worker that was cut off may leave its own hours later.
    last_words = run_folder / f".last-words-{secrets.token_hex(4)}"
    try:
        summary: dict[str, Any] = launch(
            train,
            {
                "config": config,
                "run_folder": run_folder,
                "stop_file": stop_file,
                "last_words": last_words,
            },
            config,
            launcher,
            while_waiting=grow.look,
        )
        return summary
    except WorkerLostError as error:
        if last_words.is_file() and (verdict := last_words.read_text()):  # empty on a full disk
            raise WorkerLostError(verdict) from error
        raise
    finally:
        last_words.unlink(missing_ok=True)


def _final(error: Exception, failures: int, config: Config, after: Any) -> str:
    """The last word on a run that failed too often."""
    return (
        f"{error}; that was failure {failures} since the last new checkpoint "
        f"(scaling.max_failures is {config.scaling.max_failures}); the same --run-id goes on from "
        f"{after or 'the beginning'}"
    )


class _Stop:
    """Asks the workers to stop, when a signal or the supervisor says so.

    Attributes:
        asked_by: the signal, once there was one.
        file: that asks the workers; this process's own, as another one may try to train the run.
    """

    def __init__(self, run_folder: Path) -> None:
        self.asked_by: signal.Signals | None = None
        self.file = run_folder / f".stop-{secrets.token_hex(4)}"
        self._run_id = run_folder.name

    def ask(self) -> None:
        """Ask the workers to save and stop."""
        self.file.touch()

    def clear(self) -> None:
        """Forget what was asked for growing; a signal stays."""
        self.file.unlink(missing_ok=True)
        if self.asked_by is not None:
            self.ask()

    def done(self, summary: dict[str, Any]) -> StoppedError:
        """What to raise after a stop in good order."""
        after = f"after step {summary['steps']:,}, saved {summary['checkpoint']}"
        return self._error(self.asked_by or signal.SIGTERM, after, "there")

    def cut_short(self, error: Exception, newest: Folder | None) -> StoppedError:
        """What to raise if a worker was lost while the others stopped."""
        assert self.asked_by is not None
        where = str(newest or "the beginning")
        return self._error(self.asked_by, f"but not in good order: {error}", where)

    def _error(self, by: signal.Signals, how: str, where: str) -> StoppedError:
        text = f"stopped by {by.name} {how}; --run-id {self._run_id} goes on from {where}"
        return StoppedError(text, 128 + by)

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Ask at the first SIGINT or SIGTERM; the second one raises StoppedError at once."""

        def take(number: int, frame: FrameType | None) -> None:
            by = signal.Signals(number)
            if self.asked_by is not None:
                raise self._error(by, "at once, without saving", "the newest checkpoint")
            self.asked_by = by
            log.warning("%s: the workers save and stop; once more stops at once", by.name)
            self.ask()

        kinds = (signal.SIGINT, signal.SIGTERM)
        before: dict[int, Any] = {kind: signal.signal(kind, take) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
            self.file.unlink(missing_ok=True)


class _Growth:
    """Looks for room for more workers while a run goes on with fewer than it wants."""

    def __init__(
        self, config: Config, own: Config, launcher: str, stop: _Stop, run_folder: Path
    ) -> None:
        self.wanted = False
        self._scaling = config.scaling
        self._num_workers = own.scaling.num_workers
        self._stop = stop
        self._looks = launcher == "ray" and self._num_workers < config.scaling.num_workers
        self._run_folder = run_folder
        self._opened = opened_at(run_folder)
        self._next_look = 0.0

    def look(self) -> None:
        """Stop the workers if more than these fit now; they go on as more."""
        if not self._looks or self.wanted or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        if opened_at(self._run_folder) == self._opened:
            return  # the workers of this attempt haven't taken their own room yet
        more = workers_that_fit(self._scaling)
        fit = min(self._num_workers + more, self._scaling.num_workers)
        if fit > self._num_workers:
            log.info("room for %s workers: the %s save and go on as more", fit, self._num_workers)
            self.wanted = True
            self._stop.ask()


def _with_workers_that_fit(config: Config, launcher: str) -> Config:
    """The run with fewer workers, if `scaling.min_workers` allows and no more fit for a while.

    Raises:
        UserError: not even so few fit, for a longer while.
    """
    scaling = config.scaling
    if launcher != "ray" or scaling.min_workers is None:
        return config
    began = time.monotonic()
    while (fit := workers_that_fit(scaling)) < scaling.num_workers:
        enough = fit >= scaling.min_workers
        if time.monotonic() - began > (_FEWER_AFTER_S if enough else _TOO_FEW_AFTER_S):
            break
        time.sleep(0.5)
    if fit < scaling.min_workers:
        raise UserError(
            f"only {fit} workers fit what is free in the cluster, scaling.min_workers is "
            f"{scaling.min_workers}; add nodes, or lower it or scaling.resources_per_worker"
        )
    num_workers = min(fit, scaling.num_workers)
    if num_workers == scaling.num_workers:
        return config
    log.warning("going on with %s of %s workers", num_workers, scaling.num_workers)
    fewer = scaling.model_copy(update={"num_workers": num_workers})
    return config.model_copy(update={"scaling": fewer})
