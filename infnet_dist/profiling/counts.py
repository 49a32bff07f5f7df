"""Counts what a step computes and sends: FLOPs of matrix products, bytes of collectives."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from infnet_dist.profiling.phases import PhaseClock

_aten, _c10d = torch.ops.aten, torch.ops.c10d


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = grad.shape, query.shape, key.shape, value.shape
    return int(sdpa_backward_flop_count(*shapes))


# Those that torch counts, and the attention on CPUs, which it forgets.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


class StepCounts(TorchDispatchMode):
    """Counts the FLOPs and the sent bytes of steps; they are slow meanwhile.

    FLOPs are those of matrix products, convolutions and attention, a multiplication and an addition
    being two; not those of element-wise operations, norms, lookups and optimizers. Bytes are those
    that leave this rank: of an all-to-all what isn't its own part, of an all-reduce, reduce-scatter
    or all-gather of n bytes among W ranks the least that any algorithm can do with: 2 (W - 1) / W,
    (W - 1) / W and (W - 1) / W times n.

    Args:
        clock: knows the phase.

    Attributes:
        steps: number of steps; its user counts them.
        sent_bytes: by phase.
        flops: by phase.
        flops_by_dtype: the same by the type of the factors.
    """

    def __init__(self, clock: PhaseClock) -> None:
        super().__init__()
        self._clock = clock
        self.steps = 0
        self.sent_bytes: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.flops_by_dtype: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Execute and count an operation."""
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _SENT:
            self.sent_bytes[self._clock.phase] += _SENT[packet](args, _group(args))
        elif packet in _FLOPS:
            flops = _FLOPS[packet](*args, **(kwargs or {}), out_val=out)
            self.flops[self._clock.phase] += flops
            self.flops_by_dtype[args[1].dtype] += flops  # a factor in all of them
        return out


def _group(args: Sequence[Any]) -> dist.ProcessGroup:
    """The process group among a collective's arguments."""
    return dist.ProcessGroup.unbox(next(a for a in args if isinstance(a, torch.ScriptObject)))


def _num_bytes(tensors: Any) -> int:
    """Bytes of a tensor, or of all in nested lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(map(_num_bytes, tensors))


def _all_to_all_single(args: Sequence[Any], group: dist.ProcessGroup) -> int:
    _, given, _, _, splits, *_ = args
    size = group.size()
    splits = splits or [len(given) // size] * size
    row_bytes = math.prod(given.shape[1:]) * given.element_size()
    return int((sum(splits) - splits[group.rank()]) * row_bytes)


def _all_to_all(args: Sequence[Any], group: dist.ProcessGroup) -> int:
    return _num_bytes(args[1]) - _num_bytes(args[1][group.rank()])


def _reduce_scatter(args: Sequence[Any], group: dist.ProcessGroup) -> int:
    given = args[1]
    if isinstance(given, torch.Tensor):
        return _of_others(given.nbytes, group)
    return sum(_num_bytes(parts) - _num_bytes(parts[group.rank()]) for parts in given)


def _all_gather(args: Sequence[Any], group: dist.ProcessGroup) -> int:
    return _num_bytes(args[1]) * (group.size() - 1)


def _all_reduce(args: Sequence[Any], group: dist.ProcessGroup) -> int:
    return 2 * _of_others(_num_bytes(args[0]), group)


def _of_others(num_bytes: int, group: dist.ProcessGroup) -> int:
    """The other ranks' share of a tensor."""
    return round(num_bytes * (group.size() - 1) / group.size())


# Bytes that this rank sends, from a collective's arguments.
_SENT: Mapping[Any, Callable[[Sequence[Any], dist.ProcessGroup], int]] = {
    _c10d.alltoall_base_: _all_to_all_single,
    _c10d.alltoall_: _all_to_all,
    _c10d._reduce_scatter_base_: _reduce_scatter,
    _c10d.reduce_scatter_: _reduce_scatter,
    _c10d._allgather_base_: _all_gather,
    _c10d.allgather_: _all_gather,
    _c10d.allreduce_: _all_reduce,
}
