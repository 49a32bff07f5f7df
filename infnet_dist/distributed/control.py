"""Control flags: decisions of all ranks in each step, in one small all-reduce.

A rank can't skip a step, save or stop alone: the others would wait forever in a collective.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from infnet_dist.distributed.context import WorkerContext


class ControlFlags(NamedTuple):
    """Flags of a step; all-reduced, a flag is True if it is on any rank.

    Attributes:
        nonfinite_loss: the loss of the step's batch isn't finite.
        save: checkpoint.every_minutes have passed since the last checkpoint.
        stop: a graceful shutdown is requested.
    """

    nonfinite_loss: bool = False
    save: bool = False
    stop: bool = False

    def all_reduced(self, context: WorkerContext) -> "ControlFlags":
        """The flags of all ranks combined; every rank calls it."""
        if context.world_size == 1:
            return self
        flags = torch.tensor(self, dtype=torch.int32)  # on the CPU: by gloo, also beside NCCL
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=context.group)
        return ControlFlags(*(bool(flag) for flag in flags.tolist()))
