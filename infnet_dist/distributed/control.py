"""What all ranks decide together in each step, in one small all-reduce.

A rank alone can't leave out a step, save or stop: the others would wait in a collective for ever.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from infnet_dist.distributed.context import WorkerContext


class ControlFlags(NamedTuple):
    """True where any rank says so.

    Attributes:
        nonfinite_loss: the loss of the step's batch isn't finite.
        save: a checkpoint is due by the clock.
        stop: save and end the run in good order.
    """

    nonfinite_loss: bool = False
    save: bool = False
    stop: bool = False

    def all_reduced(self, context: WorkerContext) -> "ControlFlags":
        """Those of all ranks; every rank calls it."""
        if context.world_size == 1:
            return self
        votes = torch.tensor(self, dtype=torch.int32)  # on the CPU: by gloo, also beside NCCL
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=context.group)
        return ControlFlags(*(bool(vote) for vote in votes.tolist()))
