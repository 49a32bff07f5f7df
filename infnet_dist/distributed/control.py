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
        publish: publish.every_minutes have passed since the last publication.
    """

    nonfinite_loss: bool = False
    save: bool = False
    stop: bool = False
    publish: bool = False

    def all_reduced(self, context: WorkerContext) -> "ControlFlags":
        """The flags of all ranks combined; every rank calls it."""
        if context.world_size == 1:
            return self
        flags = torch.tensor(self, dtype=torch.int32)  # on the CPU: by gloo, also beside NCCL
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=context.group)
        return ControlFlags(*(bool(flag) for flag in flags.tolist()))


class PendingFlags:
    """The flags of a step on their way to all ranks; every rank makes one.

    The all-reduce runs beside the backward pass. Only `read` waits for it on the host, so call it a
    step later.

    Args:
        loss: of this rank, a scalar on the worker's device.
        save: as in `ControlFlags`.
        stop: as in `ControlFlags`.
        publish: as in `ControlFlags`.
        context: this worker.
    """

    def __init__(
        self,
        loss: torch.Tensor,
        context: WorkerContext,
        *,
        save: bool = False,
        stop: bool = False,
        publish: bool = False,
    ) -> None:
        self._flags = torch.zeros(4, dtype=torch.int32, device=loss.device)
        self._flags[0].copy_(loss.detach().isfinite().logical_not())
        for place, flag in ((1, save), (2, stop), (3, publish)):
            if flag:
                self._flags[place].fill_(1)
        self._work: dist.Work | None = None
        if context.world_size > 1:
            self._work = dist.all_reduce(
                self._flags, dist.ReduceOp.MAX, group=context.group, async_op=True
            )
        self._host: torch.Tensor | None = None
        self._copied = torch.cuda.Event() if loss.device.type == "cuda" else None

    def nonfinite_loss(self) -> torch.Tensor:
        """Bool scalar on the device, whose stream waits for it: the loss isn't finite somewhere."""
        self._reduced()
        return self._flags[0] != 0

    def read(self) -> ControlFlags:
        """The flags of all ranks combined."""
        self._reduced()
        if self._copied is not None:
            self._copied.synchronize()
        assert self._host is not None
        return ControlFlags(*(bool(flag) for flag in self._host.tolist()))

    def _reduced(self) -> None:
        if self._host is not None:
            return
        if self._work is not None:
            self._work.wait()
        self._host = self._flags.to("cpu", non_blocking=True)
        if self._copied is not None:
            self._copied.record()
