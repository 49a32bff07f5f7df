"""Turns a plain function into an N-rank gloo test."""

from collections.abc import Callable
from typing import Any

import torchrec  # noqa: F401  imported before forking, so that a rank starts in milliseconds

from ray_jobs._local import run_local


def run_ranks(worker: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
    """Return the results of `worker(context, **arguments)` by rank; raise the root error.

    Collectives wait longer than a test may take: a rank that waits for a lost one fails the test.
    """
    return run_local(worker, arguments, num_workers=world_size, timeout_s=1800, start_method="fork")
