"""Runs a worker function on N workers: under Ray Train, or as plain local processes.

A worker function takes a `WorkerContext` and keyword arguments, and returns something picklable.
Both launchers return the result of rank 0, and raise the root error of the workers that failed.
"""

from collections.abc import Callable
from typing import Any

from infnet_dist.config.run import Config
from ray_jobs._local import run_local
from ray_jobs._ray_train import run_on_ray


def launch(
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    config: Config,
    launcher: str,
    *,
    num_workers: int | None = None,
    while_waiting: Callable[[], None] = lambda: None,
) -> Any:
    """Run `worker(context, **arguments)` on workers of the kind that `config.scaling` describes.

    Args:
        worker: a module-level function.
        arguments: picklable keyword arguments.
        config: the run.
        launcher: "ray" or "local".
        num_workers: None for `scaling.num_workers`.
        while_waiting: called about every second meanwhile (on Ray).

    Raises:
        UserError: raised by a worker.
        WorkerLostError: a worker, or its node, was lost.
        RuntimeError: any other failure of a worker; the message holds its root error.
    """
    scaling = config.scaling
    num_workers = num_workers or scaling.num_workers
    if launcher == "ray":
        return run_on_ray(worker, arguments, config, num_workers, while_waiting)
    return run_local(
        worker,
        arguments,
        num_workers=num_workers,
        use_gpu=scaling.use_gpu,
        timeout_s=scaling.timeout_s,
    )[0]
