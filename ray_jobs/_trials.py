"""Runs trials concurrently: with Ray Tune on a cluster, or with threads on this machine.

The workers of a trial are processes on one node (`run_local`); Ray Tune reserves their CPUs and
GPUs and starts as many trials as fit.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from infnet_dist.comparison.protocol import Trial
from infnet_dist.config.run import Config, ScalingConfig
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import UserError
from infnet_dist.training.data_changes import check_content
from infnet_dist.training.trainer import train
from ray_jobs._cluster import connect
from ray_jobs._local import run_local

log = logging.getLogger("infnet_dist")


def run_trials(
    trials: Sequence[Trial], *, launcher: str, at_once: int | None, folder: Path
) -> dict[str, str]:
    """Train all trials; each writes a summary to its run folder.

    Args:
        trials: unfinished trials; a stopped one resumes from its newest checkpoint.
        launcher: "ray" or "local".
        at_once: maximum number of concurrent trials; None: as many as fit.
        folder: folder for Ray's files.

    Returns:
        The error of each trial that failed, by its id.
    """
    progress = _Progress(len(trials))
    if not trials:
        return {}
    if launcher == "local":
        return _run_threads(trials, at_once or 1, progress)
    return _run_tune(trials, at_once, folder, progress)


def train_trial(trial: Trial) -> None:
    """Train one trial on workers of this node."""
    scaling = trial.config.scaling
    run_local(
        train_quietly,
        {"config": trial.config, "run_folder": trial.folder, "content_hash": trial.data},
        num_workers=scaling.num_workers,
        use_gpu=scaling.use_gpu,
        timeout_s=scaling.timeout_s,
    )


def train_quietly(
    context: WorkerContext, *, config: Config, run_folder: Path, content_hash: str
) -> dict[str, Any]:
    """Train without log lines per interval, since many trials run at once.

    Raises:
        DataError: the training set doesn't have this content hash, so it changed between trials.
    """
    log.setLevel(logging.WARNING)
    context.together(lambda: check_content(config.data.path, content_hash))
    return train(context, config, run_folder=run_folder)


def _run_threads(trials: Sequence[Trial], at_once: int, progress: "_Progress") -> dict[str, str]:
    failures = {}
    pool = ThreadPoolExecutor(at_once)
    try:
        running = {pool.submit(train_trial, trial): trial for trial in trials}
        for done in as_completed(running):
            error = done.exception()
            progress.report(running[done].id, error)
            if error is not None:
                failures[running[done].id] = str(error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # an interrupt starts no further trial
    return failures


def _run_tune(
    trials: Sequence[Trial], at_once: int | None, folder: Path, progress: "_Progress"
) -> dict[str, str]:
    connect()
    import ray
    from ray import tune

    resources = _resources(trials[0].config.scaling)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(n.get(k, 0.0) >= v for k, v in resources.items()) for n in nodes):
        needs = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
        raise UserError(
            f"a trial needs {needs} on one node, but no node of this Ray cluster has them; lower "
            "scaling.num_workers or scaling.resources_per_worker, or add a larger node"
        )
    by_id = {trial.id: trial for trial in trials}

    def run_one(settings: dict[str, Any]) -> None:
        train_trial(settings["trial"])

    class ReportEnds(tune.Callback):
        """Logs the end of each trial."""

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            progress.report(trial.config["trial"].id, None)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            progress.report(trial.config["trial"].id, trial.error_file)

    tuner = tune.Tuner(
        tune.with_resources(run_one, resources),
        param_space={"trial": tune.grid_search(list(by_id.values()))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once, trial_dirname_creator=lambda trial: trial.trial_id
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[ReportEnds()]
        ),
    )
    results = tuner.fit()
    return {
        result.config["trial"].id: str(result.error)
        for result in results
        if result.error is not None and result.config is not None
    }


def _resources(scaling: ScalingConfig) -> dict[str, float]:
    """The resources of all workers of a trial."""
    per_worker = dict(scaling.resources_per_worker) | ({"GPU": 1.0} if scaling.use_gpu else {})
    return {name: scaling.num_workers * amount for name, amount in per_worker.items()}


class _Progress:
    """Logs one line per finished trial, with the estimated time left."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._start = time.monotonic()

    def report(self, name: str, error: object) -> None:
        self._done += 1
        seconds = time.monotonic() - self._start
        left = seconds / self._done * (self._total - self._done)
        state = "done" if error is None else f"FAILED ({error})"
        log.info(
            "trial %d/%d %s %s, %s left",
            *(self._done, self._total, name, state, tqdm.format_interval(left)),
        )
