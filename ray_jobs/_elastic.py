"""Trains with fewer workers while fewer fit (`scaling.min_workers`), and with more once they do."""

import logging
import time
from pathlib import Path

from infnet_dist.config.run import Config
from infnet_dist.errors import UserError
from infnet_dist.training.run_folder import opened_at
from ray_jobs._graceful_stop import GracefulStop
from ray_jobs._resources import workers_that_fit

_FEWER_AFTER_S = 20.0  # in which a lost node may come back, before fewer workers train
_TOO_FEW_AFTER_S = 180.0  # in which fewer than scaling.min_workers may fit, before it is an error
_LOOK_S = 5.0  # between two looks for free resources
log = logging.getLogger("infnet_dist")


def with_workers_that_fit(config: Config) -> Config:
    """The run with fewer workers, if `scaling.min_workers` allows that and no more fit for a while.

    Raises:
        UserError: fewer than `scaling.min_workers` fit, for a longer while.
    """
    scaling = config.scaling
    if scaling.min_workers is None:
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
    log.warning("continuing with %s of %s workers", num_workers, scaling.num_workers)
    fewer = scaling.model_copy(update={"num_workers": num_workers})
    return config.model_copy(update={"scaling": fewer})


class Growth:
    """Looks for free resources while an attempt trains with fewer workers than the run wants.

    Args:
        wanted: the run.
        actual: the same with the workers of this attempt.
        run_folder: its folder.
        stop: stops the attempt once more workers fit.

    Attributes:
        found: whether more workers fit, and the attempt was asked to stop.
    """

    def __init__(
        self, wanted: Config, actual: Config, run_folder: Path, stop: GracefulStop
    ) -> None:
        self.found = False
        self._scaling = wanted.scaling
        self._num_workers = actual.scaling.num_workers
        self._stop = stop
        self._run_folder = run_folder
        self._opened = opened_at(run_folder)
        self._next_look = 0.0

    def look(self) -> None:
        """Ask the workers to save and stop if more of them fit by now."""
        fewer = self._num_workers < self._scaling.num_workers
        if not fewer or self.found or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        if opened_at(self._run_folder) == self._opened:
            return  # the workers of this attempt haven't taken their own resources yet
        more = workers_that_fit(self._scaling)
        fit = min(self._num_workers + more, self._scaling.num_workers)
        if fit > self._num_workers:
            log.info(
                "%s workers fit by now: the %s workers save, and %s resume",
                *(fit, self._num_workers, fit),
            )
            self.found = True
            self._stop.request()
