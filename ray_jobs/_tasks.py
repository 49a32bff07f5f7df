"""Executors for `infnet_dist.ingest.logs`: run tasks as local processes, or on a Ray cluster."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from infnet_dist.errors import DataError, UserError
from infnet_dist.ingest.logs.stages.runner import Execute, Outcome, Recorded, processes
from ray_jobs._cluster import connect

_RETRIES = 3  # of a task whose worker or node was lost; after an error of its own there is none


@contextlib.contextmanager
def executor(launcher: str) -> Iterator[Execute]:
    """The executor of a launcher, "ray" or "local": as many tasks at once as there are CPUs."""
    if launcher == "ray":
        yield _on_ray
        return
    with processes(len(os.sched_getaffinity(0))) as execute:
        yield execute


def _on_ray(tasks: Sequence[Recorded]) -> Iterator[tuple[int, Outcome]]:
    if not tasks:
        return
    connect()
    import ray
    from ray.exceptions import RayError, RayTaskError

    run = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)
    waiting = iter(enumerate(tasks))
    running: dict[Any, int] = {}
    at_once = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
    try:
        while True:
            for number, task in islice(waiting, at_once - len(running)):
                running[run.remote(task)] = number
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                outcome = ray.get(reference)
                yield running.pop(reference), outcome
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        raise DataError(
            f"a task of the ingest was lost {_RETRIES + 1} times ({type(error).__name__}), perhaps "
            "by lack of memory; lower ingest.memory_mib and run the same command again: it resumes "
            "where it stopped"
        ) from error
    finally:
        for reference in running:
            ray.cancel(reference)


def _run(task: Recorded) -> Outcome:
    return task.run()
