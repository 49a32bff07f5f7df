"""The errors of workers, and which of them caused the others."""

import re
from collections.abc import Mapping

import torch.distributed as dist

from infnet_dist.errors import UserError

# gloo's RuntimeErrors name a place in its sources, which no path of a user looks like.
_BROKEN = re.compile(r"\bgloo/\S+\.(cc|h):\d+\]|NCCL|Connection closed by peer")


class WorkerLostError(RuntimeError):
    """A worker was lost, or was left behind by one that was: a restart may help."""


class BrokenCollectiveError(WorkerLostError):
    """A worker's collective failed, because another worker was lost."""


def root_error(failures: Mapping[int, BaseException]) -> BaseException:
    """The failure that caused the others.

    It is a user's error if any rank has one. Otherwise it is one that isn't just a broken
    collective, which is how the other ranks fail.

    Args:
        failures: the error of each failed rank.
    """
    in_order = [error for _, error in sorted(failures.items())]
    users = [error for error in in_order if isinstance(error, UserError)]
    causes = [error for error in in_order if not is_broken_collective(error)]
    return [*users, *causes, *in_order][0]


def is_broken_collective(error: BaseException) -> bool:
    """Whether a collective of a worker failed because another worker was lost."""
    if isinstance(error, dist.DistError | BrokenCollectiveError):
        return True
    return isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))
