"""Executors for `infnet_dist.ingest.logs`: tasks as processes here, or on a Ray cluster."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

from infnet_dist.errors import UserError
from infnet_dist.ingest.logs.stages import Execute, Outcome, Recorded, processes

_RETRIES = 3  # of a task whose worker or node died; its own errors aren't repeated


@contextlib.contextmanager
def executor(launcher: str) -> Iterator[Execute]:
    """The executor of a launcher, "ray" or "local": as many tasks at once as there are CPUs."""
    if launcher == "ray":
        yield _on_ray
        return
    with processes(len(os.sched_getaffinity(0))) as execute:
        yield execute


def _on_ray(tasks: Sequence[Recorded]) -> Iterator[tuple[int, Outcome]]:
    import ray
    from ray.exceptions import RayTaskError

    if not tasks:
        return
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    run = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)
    numbers = {run.remote(task): number for number, task in enumerate(tasks)}
    try:
        while numbers:
            ready, _ = ray.wait(list(numbers), num_returns=1)
            for reference in ready:
                yield numbers.pop(reference), ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for reference in numbers:
            ray.cancel(reference)


def _run(task: Recorded) -> Outcome:
    return task.run()
