"""Which error of ours a failure that Ray Train reports becomes."""

import re
from collections.abc import Mapping, Sequence

from infnet_dist.errors import UserError
from ray_jobs._ray_internals import LOST_WORKER_ERRORS
from ray_jobs._worker_errors import WorkerLostError, is_broken_collective, root_error


def workers_failed(failures: Mapping[int, BaseException]) -> Exception:
    """The error to raise for the errors of these ranks."""
    root = root_error(failures)
    if isinstance(root, UserError):
        return root
    if not (_is_lost(root) or is_broken_collective(root)):
        return RuntimeError(f"{type(root).__name__}: {root}")
    lost = sorted(rank for rank, error in failures.items() if _is_lost(error))
    if not lost:
        return WorkerLostError(f"a worker was lost: {root}")
    reason = reason_of(failures[lost[0]])
    return WorkerLostError(f"worker {', '.join(map(str, lost))} was lost: {reason}")


def nodes_drained(ranks: Sequence[int]) -> WorkerLostError:
    """The error to raise when nodes of these ranks were drained, as spot instances are."""
    named = ", ".join(map(str, sorted(ranks)))
    return WorkerLostError(f"worker {named} was lost: its node was drained (preempted)")


def reason_of(error: BaseException) -> str:
    """Ray's reason for the loss of a worker or actor, in one line."""
    text = " ".join(str(getattr(error, "health_check_failure", error)).split())
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes| *$)", text)
    return detail[1] if detail else text[:200]


def _is_lost(error: BaseException) -> bool:
    """Whether Ray reports a worker that died, was killed, or doesn't answer."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError) or type(error).__name__ in LOST_WORKER_ERRORS
