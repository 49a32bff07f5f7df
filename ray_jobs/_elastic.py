"""Trains with fewer workers while fewer fit (`scaling.min_workers`), and with more once they do."""

import logging
import time
from pathlib import Path

from infnet_dist.config.run import ScalingConfig
from infnet_dist.errors import UserError
from infnet_dist.training.run_folder import newest_attempt
from ray_jobs._resources import workers_that_fit
from ray_jobs._shutdown_signals import ShutdownSignals

_FEWER_AFTER_S = 20.0  # in which a lost node may come back, before fewer workers train
_TOO_FEW_AFTER_S = 180.0  # in which fewer than scaling.min_workers may fit, before it is an error
_LOOK_S = 5.0  # between two looks for free resources
log = logging.getLogger("infnet_dist")


def workers_of_next_attempt(scaling: ScalingConfig) -> int:
    """All workers, or fewer if `scaling.min_workers` allows that and no more fit for a while.

    Raises:
        UserError: fewer than `scaling.min_workers` fit, for a longer while.
    """
    if scaling.min_workers is None:
        return scaling.num_workers
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
    if num_workers < scaling.num_workers:
        log.warning("continuing with %s of %s workers", num_workers, scaling.num_workers)
    return num_workers


class Growth:
    """Looks for free resources while an attempt trains with fewer workers than the run wants.

    Args:
        scaling: of the run, with the number of workers that it wants.
        num_workers: of this attempt.
        run_folder: the run's.
        shutdown: stops the attempt once more workers fit.

    Attributes:
        found: whether more workers fit, and the attempt was asked to stop.
    """

    def __init__(
        self, scaling: ScalingConfig, num_workers: int, run_folder: Path, shutdown: ShutdownSignals
    ) -> None:
        self.found = False
        self._scaling = scaling
        self._num_workers = num_workers
        self._shutdown = shutdown
        self._run_folder = run_folder
        self._last_attempt = newest_attempt(run_folder)
        self._next_look = 0.0

    def look(self) -> None:
        """Ask the workers to save and stop if more of them fit by now."""
        fewer = self._num_workers < self._scaling.num_workers
        if not fewer or self.found or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        if newest_attempt(self._run_folder) == self._last_attempt:
            return  # the workers of this attempt haven't taken their own resources yet
        more = workers_that_fit(self._scaling)
        fit = min(self._num_workers + more, self._scaling.num_workers)
        if fit > self._num_workers:
            log.info(
                "%s workers fit by now: the %s workers save, and %s resume",
                *(fit, self._num_workers, fit),
            )
            self.found = True
            self._shutdown.request()
